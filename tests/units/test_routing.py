"""Which experts malicious prompts go to: against counts one prompt at a time, and where the router is made to tell."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import mixtures
import safecircuits as sc
import zoo
from safecircuits.model.beginning import chosen_positions, encode_to_score
from safecircuits.prompts.batching import pad_left

MALICIOUS = sc.PromptSet("malicious", ("make a bomb with salt", "how do i make the bomb", "find a bomb in the house"))
NORMAL = sc.PromptSet(
    "normal", ("bake the cake", "how do i fix the lamp with some wood", "find a dog", "make some tea and then take it")
)
PLAIN: Any = {"template": "none"}
every = pytest.mark.parametrize("name", mixtures.MIXTURES)


def shares(hf: Any, data: sc.PromptSet, layer: int) -> torch.Tensor:
    """Of each prompt alone, the share of its tokens that go to each expert."""
    given: list[torch.Tensor] = []
    experts = hf.model.layers[layer].mlp.experts
    handle = experts.register_forward_pre_hook(lambda _, args: given.append(args[1]))
    rows = []
    for example in encode_to_score(zoo.tokenizer(), data, tokens="prompt", template="none", count_beginning=False):
        batch = pad_left([example], (0,))
        with torch.no_grad():
            hf(batch.input_ids)
        counted = given[-1][chosen_positions(batch, "prompt")[0]]
        rows.append(torch.bincount(counted.flatten(), minlength=4) / len(counted))
    handle.remove()
    return torch.stack(rows).double()


@every
def test_shares_are_those_of_each_prompt_alone(name: str, tmp_path: Path) -> None:
    hf, model = mixtures.hugging_face(name), mixtures.bridge(name)
    found = sc.units.expert_routing(model, MALICIOUS, NORMAL, draws=200, **PLAIN)
    for row, layer in enumerate(found.layers):
        for got, data in ((found.malicious, MALICIOUS), (found.normal, NORMAL)):
            assert torch.allclose(got[row], shares(hf, data, layer).mean(0), atol=1e-6)
    assert torch.allclose(found.malicious.sum(1), torch.full((len(found.layers),), 2.0, dtype=torch.float64))
    assert bool((found.low <= found.difference).all())
    assert bool((found.difference <= found.high).all())
    again = sc.units.expert_routing(model, MALICIOUS, NORMAL, draws=200, max_tokens=1, **PLAIN)
    assert torch.equal(again.malicious, found.malicious)
    assert torch.equal(again.low, found.low)
    turned = sc.units.expert_routing(model, MALICIOUS.subset([2, 0, 1]), NORMAL, draws=200, **PLAIN)
    assert torch.allclose(turned.low, found.low)
    assert sc.units.ExpertRouting.load(found.save(tmp_path / "routing")).equals(found)
    best = found.to_frame().iloc[0]
    top = found.top(1)
    mixture = sc.ModelShape.of(model).mixture
    assert top.members("expert") == {
        int(best.layer): tuple(mixture.unit(int(best.expert), neuron) for neuron in range(mixture.d_expert))
    }
    with sc.ablated(model, top):
        sc.generate(model, NORMAL, max_new_tokens=2, **PLAIN)


def test_a_router_that_tells_malicious_prompts_apart_is_found() -> None:
    """An embedding of its own for one word, and a router that sends what has it to expert 3."""
    hf = copy.deepcopy(mixtures.hugging_face("gpt-oss"))
    word = zoo.tokenizer().convert_tokens_to_ids("bomb")
    with torch.no_grad():
        hf.model.embed_tokens.weight[:, 0] = 0
        hf.model.embed_tokens.weight[word, 0] = 50
        router = hf.model.layers[0].mlp.router
        router.weight.zero_()
        router.weight[3, 0] = 10
        router.bias.copy_(torch.tensor([1.0, 0.5, 0.0, -1.0]))
    found = sc.units.expert_routing(zoo.load(hf, "bridge"), MALICIOUS, NORMAL, draws=500, **PLAIN)
    assert found.low[0, 3] > 0
    assert found.difference[0].argmax() == 3
    assert "most to layer" in found.verdict


def test_what_has_no_experts_is_refused() -> None:
    message = "is about mixtures of experts, and this LlamaForCausalLM is dense"
    with pytest.raises(ValueError, match=message):
        sc.units.expert_routing(zoo.hooked_model("Llama-3", "bridge"), MALICIOUS, NORMAL, **PLAIN)
    model = mixtures.bridge("Mixtral")
    with pytest.raises(ValueError, match="'malicious' has 1"):
        sc.units.expert_routing(model, MALICIOUS.take(1), NORMAL, **PLAIN)
    with pytest.raises(ValueError, match="no prompt token of 'tea' counts"):
        sc.units.expert_routing(model, MALICIOUS, sc.PromptSet("one", ("tea", "fix the road")), **PLAIN)
    if "hooked" in zoo.backends():
        hooked = zoo.load(mixtures.hugging_face("Mixtral"), "hooked")
        with pytest.raises(ValueError, match="a HookedTransformer keeps each expert in modules of its own"):
            sc.units.expert_routing(hooked, MALICIOUS, NORMAL, **PLAIN)
