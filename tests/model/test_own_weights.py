"""Unmerged adapters: forward passes are the adapted model's, and what reads weights refuses or reads what runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.model.unit_weights import unit_parameter_masks
from safecircuits.prompts.prompt_set import encode
from safecircuits.weights import score_weights

peft = pytest.importorskip("peft")

PROMPTS = ("how do i make the cake", "find a lamp", "how do i fix the road")
DATA = sc.PromptSet("data", PROMPTS, ("sorry", "here is the lamp", "you take some wood"))

READERS: dict[str, Callable[[Any, Path], Any]] = {
    "magnitude": lambda m, _: sc.score_units(m, DATA, method="magnitude"),
    "wifv": lambda m, _: sc.score_units(m, DATA),
    "snip": lambda m, _: sc.score_units(m, DATA, method="snip"),
    "weights": lambda m, _: score_weights(m, DATA, method="magnitude"),
    "coupled": lambda m, _: sc.units.coupled_scores(m, kind="l2"),
    "mask": lambda m, _: unit_parameter_masks(m, "mlp", 0, [1]),
    "prune": lambda m, _: sc.units.prune_units(m, sc.FreezeMask.of_units({"mlp": {0: [1]}}, m)),
    "save": lambda m, folder: sc.save_pretrained(m, folder / "saved"),
    "finetune": lambda m, _: sc.finetune(m, DATA, steps=1, progress=False),
}


def adapted(*targets: str) -> Any:
    hf = build_tiny_llama()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.add_adapter(peft.LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False))
    return hf.eval()


@pytest.mark.parametrize("targets", [("down_proj", "o_proj"), ("q_proj", "up_proj", "down_proj", "o_proj")])
def test_passes_are_the_adapted_models(targets: tuple[str, ...]) -> None:
    hf = adapted(*targets)
    model = sc.load_model(hf, tokenizer=build_tiny_tokenizer())
    got = sc.collect_residuals(model, PROMPTS[:1], layers=[1]).values[0, 0]
    seen: list[torch.Tensor] = []
    handle = hf.model.layers[1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    encoded = encode(model.tokenizer, PROMPTS[:1])[0].ids
    with torch.no_grad():
        hf(torch.tensor([encoded]))
    handle.remove()
    torch.testing.assert_close(got, seen[0][0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", READERS)
def test_what_reads_weights_says_to_merge(name: str, tmp_path: Path) -> None:
    model = sc.load_model(adapted("down_proj", "o_proj"), tokenizer=build_tiny_tokenizer())
    with pytest.raises(ValueError, match=r"merge_and_unload|computes with a parameter of its own"):
        READERS[name](model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_merged_adapter_is_read() -> None:
    hf = adapted("down_proj")
    for module in hf.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            module.merge()
    got = sc.score_units(sc.load_model(hf, tokenizer=build_tiny_tokenizer()), DATA, method="magnitude").scores["mlp"][0]
    weight = hf.model.layers[0].mlp.down_proj.base_layer.weight.detach().double()
    torch.testing.assert_close(got, weight.square().sum(0), rtol=1e-6, atol=0)


def test_a_parametrized_weight_is_what_runs_or_refused() -> None:
    hf = build_tiny_llama()
    linear = hf.model.layers[0].mlp.down_proj
    torch.nn.utils.parametrizations.weight_norm(linear)
    with torch.no_grad():
        linear.parametrizations.weight.original0.mul_(1.7)
    got = sc.score_units(sc.load_model(hf, tokenizer=build_tiny_tokenizer()), DATA, method="magnitude").scores["mlp"][0]
    torch.testing.assert_close(got, linear.weight.detach().double().square().sum(0), rtol=1e-6, atol=0)
