"""A unit is there or the answer is an error: mixtures of experts, layers of two kinds, and every way to name units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import transformers

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer, randomised
from safecircuits.baselines.rewinding import entries_of
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.model.sites import ModelShape, has_units
from safecircuits.training import frozen, frozen_digest

DATA = sc.PromptSet("data", ("find a lamp", "how do i bake the cake"), ("sure", "sorry i cannot"))
EXPERTS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8},
    "Olmoe": {"num_experts": 4},
    "GptOss": {"num_local_experts": 4, "head_dim": 8, "layer_types": ["full_attention"] * 2},
}


def mixture(kind: str, **more: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(build_tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        **EXPERTS[kind] | more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(getattr(transformers, f"{kind}ForCausalLM")(config).float()).eval()


def bridged(hf: Any) -> Any:
    return load_model(hf, tokenizer=build_tiny_tokenizer())


@pytest.fixture(params=EXPERTS)
def experts(request: pytest.FixtureRequest) -> Any:
    return bridged(mixture(request.param))


def neurons(model: Any, layer: int = 1) -> FreezeMask:
    return FreezeMask.of_units({"mlp": {layer: range(10)}}, ModelShape.of(model))


def entered(context: Any) -> None:
    with ExitStack() as stack:
        stack.enter_context(context)


WAYS: Mapping[str, Callable[[Any], Any]] = {
    "parameter masks": lambda m: neurons(m).parameter_masks(m),
    "plain parameter masks": lambda m: neurons(m).parameter_masks(sc.model.load.to_hugging_face(m)),
    "frozen": lambda m: entered(frozen(m, neurons(m))),
    "digest": lambda m: frozen_digest(m, neurons(m)),
    "finetune": lambda m: sc.finetune(m, DATA, freeze=neurons(m), steps=1, progress=False),
    "phases": lambda m: sc.finetune(
        m, DATA, freeze=[sc.Phase(FreezeMask.layers(0), steps=1), sc.Phase(neurons(m), steps=1)], progress=False
    ),
    "share": lambda m: neurons(m).share_of_parameters(m),
    "rewind": lambda m: entries_of(m, neurons(m)),
    "ablated": lambda m: entered(sc.ablated(m, neurons(m))),
    "prune": lambda m: sc.units.prune_units(m, neurons(m)),
    **{
        f"score {method}": lambda m, method=method: sc.score_units(m, DATA, method=method, sites=("mlp",))
        for method in ("wifv", "magnitude", "snip", "taylor")
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_neurons_of_a_mixture_of_experts_are_an_error_everywhere(way: str, experts: Any) -> None:
    before = {name: p.clone() for name, p in experts.named_parameters()}
    with pytest.raises(ValueError, match=r"has no (neurons|linear map)"):
        WAYS[way](experts)
    assert all(torch.equal(p, before[name]) for name, p in experts.named_parameters())


def test_heads_and_whole_layers_of_a_mixture_are_frozen(experts: Any) -> None:
    heads = FreezeMask.of_units({"attn": {1: [0, 1]}}, ModelShape.of(experts))
    for mask in (heads, FreezeMask.layers(1)):
        digest = frozen_digest(experts, mask)
        run = sc.finetune(experts, DATA, freeze=mask, steps=2, lr=1e-2, progress=False)
        assert run.n_frozen == sum(int(m.sum()) for m in mask.parameter_masks(experts).values()) > 0
        assert frozen_digest(experts, mask) == digest
    inside = [name for name in FreezeMask.layers(1).parameter_masks(experts) if ".mlp." in name]
    assert {
        name for name, p in experts.original_model.named_parameters() if ".layers.1." in name and ".mlp." in name
    } == {name for name, _ in experts.original_model.named_parameters() if sc.model.bridge.plain_name(name) in inside}


def test_units_of_the_dense_layers_alone() -> None:
    model = bridged(mixture("Qwen3Moe", mlp_only_layers=[0]))
    assert [has_units(model, "mlp", layer) for layer in (0, 1)] == [True, False]
    assert sum(int(m.sum()) for m in neurons(model, 0).parameter_masks(model).values()) == 10 * 3 * 32
    with pytest.raises(ValueError, match="layer 1 of this model has no neurons"):
        neurons(model, 1).parameter_masks(model)


def test_a_matrix_beside_the_units_is_named() -> None:
    """A sublayer with a matrix in no unit: freezing its units would not hold what they compute."""
    model = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer(), backend="hooked")
    model.blocks[1].mlp.adapter = torch.nn.Linear(32, 32, bias=False)
    assert neurons(model, 0).parameter_masks(model)
    with pytest.raises(ValueError, match=r"computes with blocks\.1\.mlp\.adapter\.weight, which belongs to none"):
        neurons(model, 1).parameter_masks(model)
