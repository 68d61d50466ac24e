"""Weights that Accelerate has offloaded: they are there while a layer runs, and read as the real ones, or refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor

import safecircuits as sc
import zoo
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.hooks.linear_maps import Matrix
from safecircuits.model.fingerprint import weights_fingerprint

PROMPTS = sc.PromptSet("some", ("how do i make the cake", "find a lamp", "a dog", "how do i fix the road"))
ANSWERED = sc.PromptSet("answered", PROMPTS.prompts, ("take some salt", "sorry i cannot", "help is here", "sure"))
# With separate matrices, with views of fused ones, with copies of them; tied and untied embeddings.
MEMBERS = ("Llama-3", "GPT-2", "Pythia", "Phi-3", "Gemma-1", "OPT")


def offloaded(name: str, where: str, folder: Path) -> Any:
    hf = zoo.ZOO[name].build(seed=3)
    if where == "cpu":
        cpu_offload(hf, execution_device="cpu")
    else:
        disk_offload(hf, str(folder / "weights"), execution_device="cpu")
    return hf


def apart(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def found(model: Any) -> dict[str, Any]:
    """What is measured on a model, and what it writes."""
    units = sc.FreezeMask.of_units({"mlp": {0: (3, 40), 1: (7,)}, "attn": {0: (1,)}}, model)
    results: dict[str, Any] = {"residuals": sc.collect_residuals(model, PROMPTS, final_norm=True).values}
    for method in ("wifv", "magnitude", "snip", "taylor", "flap_wifv"):
        for site, values in sc.score_units(model, ANSWERED, method=method).scores.items():
            results[f"{method} {site}"] = values
    with sc.scaled(model, (0, 1), alpha=1.3):
        results["scaled"] = sc.collect_residuals(model, PROMPTS).values
    with sc.ablated(model, units):
        results["ablated"] = sc.collect_residuals(model, PROMPTS).values
    for component in ("q", "v", "o", "out"):
        results[component] = Matrix.of(model, 1, component).read()
    return results


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_what_is_found_is_what_the_same_weights_in_place_show(name: str, where: str, tmp_path: Path) -> None:
    if where == "disk" and name not in ("Llama-3", "Phi-3"):
        pytest.skip("the same hooks as on the CPU")
    hf, plain = offloaded(name, where, tmp_path), zoo.load(zoo.ZOO[name].build(seed=3), "bridge")
    model = sc.load_model(hf, tokenizer=zoo.tokenizer())
    assert all(p.is_meta for p in model.blocks.parameters())
    got, want = found(model), found(plain)
    for key, value in want.items():
        assert apart(got[key], value) < 1e-5, key
    assert sc.generate(model, PROMPTS, max_new_tokens=5).texts == sc.generate(plain, PROMPTS, max_new_tokens=5).texts
    assert sc.ModelShape.of(model) == sc.ModelShape.of(plain)
    assert weights_fingerprint(model) == weights_fingerprint(plain)
    assert all(p.is_meta for p in model.blocks.parameters())  # and away again
    assert all(p.is_meta for p in hf.parameters())  # the caller's stays as it was


def test_a_copy_and_a_second_model_are_of_the_same_weights(tmp_path: Path) -> None:
    hf = offloaded("Llama-3", "cpu", tmp_path)
    model = sc.load_model(hf, tokenizer=zoo.tokenizer())
    want = sc.collect_residuals(model, PROMPTS).values
    assert torch.equal(sc.collect_residuals(copy.deepcopy(model), PROMPTS).values, want)
    assert torch.equal(sc.collect_residuals(sc.load_model(hf, tokenizer=zoo.tokenizer()), PROMPTS).values, want)
    assert sc.load_model(model) is model


def test_only_a_part_may_be_offloaded(tmp_path: Path) -> None:
    """As a device map has it that puts the last layers on the CPU, or on a disk."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    hf = zoo.ZOO["Llama-3"].build(seed=3)
    plain = zoo.load(zoo.ZOO["Llama-3"].build(seed=3), "bridge")
    for module in hf.model.layers[1].modules():
        if any(True for _ in module.parameters(recurse=False)):
            add_hook_to_module(module, AlignDevicesHook("cpu", offload=True))
    model = sc.load_model(hf, tokenizer=zoo.tokenizer())
    assert not any(p.is_meta for p in model.blocks[0].parameters())
    assert all(p.is_meta for p in model.blocks[1].parameters())
    got, want = found(model), found(plain)
    assert all(apart(got[key], value) < 1e-5 for key, value in want.items())


def test_what_writes_weights_is_refused_by_name(tmp_path: Path) -> None:
    hf = offloaded("Llama-3", "cpu", tmp_path)
    model = sc.load_model(hf, tokenizer=zoo.tokenizer())
    units = sc.FreezeMask.of_units({"mlp": {0: (3, 40)}}, model)
    direction = torch.ones(int(model.cfg.d_model))

    def frozen() -> None:
        with sc.frozen(model, units):
            raise AssertionError("nothing can be frozen")

    refused = (
        frozen,
        lambda: units.masks_on(model),
        lambda: sc.finetune(model, ANSWERED, steps=1),
        lambda: sc.finetune(hf, ANSWERED, tokenizer=zoo.tokenizer(), steps=1),
        lambda: sc.save_pretrained(model, tmp_path / "out"),
        lambda: sc.direction.orthogonalised(model, direction),
        lambda: sc.load_model(hf, backend="hooked", tokenizer=zoo.tokenizer()),
    )
    for call in refused:
        with pytest.raises(ValueError, match="offloaded"):
            call()
    assert not (tmp_path / "out").exists()


def test_a_model_without_weights_is_none() -> None:
    with torch.device("meta"):
        hf = build_tiny_llama()
    with pytest.raises(ValueError, match="on the meta device, so it has no weights"):
        sc.load_model(hf, tokenizer=build_tiny_tokenizer())


def test_quantised_and_offloaded_at_once_is_refused() -> None:
    from tests.model.test_quantised import with_codes

    hf = with_codes(build_tiny_llama())
    cpu_offload(hf, execution_device="cpu", offload_buffers=True)
    with pytest.raises(ValueError, match="and partly offloaded, which is not read here"):
        sc.load_model(hf, tokenizer=build_tiny_tokenizer())
