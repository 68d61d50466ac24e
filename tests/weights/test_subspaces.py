"""ActSVD in turn, as published, against Wei et al.'s procedure written out; and ranks that the data does not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode
from safecircuits.weights.subspaces import output_spaces, without_directions, without_directions_layerwise

WORDS = ("cake", "lamp", "road", "house", "tea", "dog")
SAFETY = sc.PromptSet(
    "s", tuple(f"make the {w}" for w in WORDS), tuple(f"sorry i cannot help with that {w} on it" for w in WORDS)
)
UTILITY = sc.PromptSet(
    "u", tuple(f"find a {w}" for w in WORDS), tuple(f"sure then you take some {w} and water of wood" for w in WORDS)
)


def linears(hf_model: Any, layer: int) -> list[Any]:
    block = hf_model.model.layers[layer]
    attn, mlp = block.self_attn, block.mlp
    return [attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def written(hf_model: Any, tokenizer: Any, data: sc.PromptSet, layer: int) -> list[torch.Tensor]:
    """What each matrix of a layer writes at the responses' tokens, the model being as it is now."""
    seen: dict[int, list[torch.Tensor]] = {}
    handles = []
    for k, module in enumerate(linears(hf_model, layer)):

        def keep(_: Any, args: Any, k: int = k) -> None:
            seen.setdefault(k, []).append(args[0][0])

        handles.append(module.register_forward_pre_hook(keep))
    starts = []
    with torch.no_grad():
        for example in encode(tokenizer, data, with_responses=True):
            hf_model(torch.tensor([example.ids]))
            starts.append(example.response_start)
    for handle in handles:
        handle.remove()
    return [
        torch.cat([x[start:] for x, start in zip(seen[k], starts, strict=True)]).double() @ module.weight.double().T
        for k, module in enumerate(linears(hf_model, layer))
    ]


def projection(outputs: torch.Tensor, rank: int) -> torch.Tensor:
    right = torch.linalg.svd(outputs, full_matrices=False).Vh[:rank]
    return right.T @ right


@torch.no_grad()
def layer_by_layer(hf_model: Any, tokenizer: Any, rank: int, utility_rank: int) -> None:
    for layer in range(3):
        by_safety, by_utility = (written(hf_model, tokenizer, data, layer) for data in (SAFETY, UTILITY))
        for module, s, u in zip(linears(hf_model, layer), by_safety, by_utility, strict=True):
            w = module.weight.double()
            kept = torch.eye(len(w)).double() - projection(u, utility_rank)
            module.weight.copy_(w - kept @ projection(s, rank) @ w)


def output_of(model: Any) -> torch.Tensor:
    batch = pad_left(encode(model.tokenizer, UTILITY))
    with torch.no_grad():
        return logits(model, batch)[batch.attention_mask.bool()]


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_layerwise_is_the_published_procedure(backend: Any) -> None:
    tokenizer = build_tiny_tokenizer()
    model = load_model(build_tiny_llama(), tokenizer=tokenizer, backend=backend)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    by_hand = build_tiny_llama()
    layer_by_layer(by_hand, tokenizer, 3, 2)
    with without_directions_layerwise(model, SAFETY, UTILITY, rank=3, utility_rank=2):
        got = output_of(model)
    torch.testing.assert_close(got, output_of(load_model(by_hand, tokenizer=tokenizer)), rtol=1e-3, atol=2e-3)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    spaces = [output_spaces(model, data) for data in (SAFETY, UTILITY)]
    with without_directions(model, *spaces, rank=3, utility_rank=2):
        at_once = output_of(model)
    assert (at_once - got).abs().max() > 0.1, "lower layers that have changed feed others something else"


def test_a_failure_half_way_leaves_the_model_as_it_was(tiny_bridge: Any) -> None:
    state = {k: v.clone() for k, v in tiny_bridge.state_dict().items()}
    few = sc.PromptSet("few", ("bake",), ("sure",))
    with (
        pytest.raises(
            ValueError, match=r"on this data matrix 0\.q writes 2 directions, so 5 of them would be arbitrary"
        ),
        without_directions_layerwise(tiny_bridge, few, rank=5),
    ):
        pass
    assert all(torch.equal(v, state[k]) for k, v in tiny_bridge.state_dict().items())


class TestRankOfTheData:
    FEW = sc.PromptSet("few", ("bake the tea",), ("sure here",))  # with its end of sequence three tokens

    def test_directions_beyond_it_are_refused(self, tiny_bridge: Any) -> None:
        spaces = output_spaces(tiny_bridge, self.FEW)
        with without_directions(tiny_bridge, spaces, rank=3):
            pass
        with (
            pytest.raises(ValueError, match="writes 3 directions, so 4 of them would be arbitrary"),
            without_directions(tiny_bridge, spaces, rank=4),
        ):
            pass
        with pytest.raises(ValueError, match="or a rank of at most 3"):
            spaces.overlap(output_spaces(tiny_bridge, UTILITY), 4)

    def test_and_of_the_matrix(self, tiny_bridge: Any) -> None:
        """48 outputs of 32 inputs: 32 directions at most, however much data there is."""
        spaces = output_spaces(tiny_bridge, SAFETY + UTILITY, tokens="all", components=("gate",))
        with (
            pytest.raises(ValueError, match=r"0\.gate writes \d+ directions, so 40 of them"),
            without_directions(tiny_bridge, spaces, rank=40),
        ):
            pass
        with without_directions(tiny_bridge, spaces, rank=48):  # all there are is no choice
            pass
