"""A weight that is frozen in part is put together for each reader; writing into what a reader got is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from test_freeze import batches, loss_of, weights
from torch import nn

from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.model.sites import ModelShape
from safecircuits.training import frozen
from safecircuits.training.slices import Slice

KINDS = ("plain", "bridge", "hooked")


def made(kind: Any) -> Any:
    hf = build_tiny_llama()
    return hf if kind == "plain" else load_model(hf, tokenizer=build_tiny_tokenizer(), backend=kind)


def mask_of(model: Any) -> FreezeMask:
    shape = ModelShape.of(model if hasattr(model, "cfg") else load_model(model, tokenizer=build_tiny_tokenizer()))
    return FreezeMask.of_units({"mlp": {0: [1, 5]}, "attn": {0: [0, 1]}}, shape)


def owner_of(model: Any, kind: str) -> tuple[nn.Module, str]:
    """The module that owns a partly frozen matrix, and the name of the attribute."""
    if kind == "plain":
        return model.model.layers[0].mlp.down_proj, "weight"
    if kind == "bridge":
        return model.blocks[0].mlp.out.original_component, "weight"
    return model.blocks[0].mlp, "W_out"


def _subscript(weight: Any) -> None:
    weight[0, 0] = 1.0


def _data(weight: Any) -> None:
    weight.data.add_(1)


def _slot(weight: Any) -> None:
    weight.data[0] = 0


def _detached(weight: Any) -> None:
    weight.detach().mul_(2)


def _initialised(weight: Any) -> None:
    nn.init.zeros_(weight)


def _view(weight: Any) -> None:
    weight.view(-1)[:3].fill_(0)


def _transposed(weight: Any) -> None:
    weight.data.T.mul_(2)


IN_PLACE: Mapping[str, Callable[[Any], None]] = {
    "add_": lambda weight: weight.add_(1),
    "copy_": lambda weight: weight.copy_(torch.zeros_like(weight)),
    "subscript": _subscript,
    "data.add_": _data,
    "data[0] =": _slot,
    "detach().mul_": _detached,
    "init": _initialised,
    "view": _view,
    "data.T": _transposed,
}


def write_inside(model: Any, kind: str, way: str, held: list[Any]) -> None:
    with frozen(model, mask_of(model)) as handle:
        owner, leaf = owner_of(model, kind)
        weight = getattr(owner, leaf)
        held.extend([weight] * len(held))
        with torch.no_grad():
            IN_PLACE[way](weight)
        del weight
        getattr(owner, leaf)
        with pytest.raises(RuntimeError, match="written to in place"):
            handle.verify()


@pytest.mark.parametrize("held", [[], [None]], ids=["let go", "held"])
@pytest.mark.parametrize("way", IN_PLACE)
@pytest.mark.parametrize("kind", KINDS)
def test_writing_in_place_is_an_error(kind: str, way: str, held: list[Any]) -> None:
    model = made(kind)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="written to in place inside frozen"):
        write_inside(model, kind, way, list(held))
    assert not any(isinstance(module, Slice) for module in model.modules())
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before), "the model is whole, and as it was"


@pytest.mark.parametrize("kind", KINDS)
def test_setting_the_data_is_an_error_at_once(kind: str) -> None:
    model = made(kind)
    with frozen(model, mask_of(model)):
        owner, leaf = owner_of(model, kind)
        weight = getattr(owner, leaf)
        with pytest.raises(RuntimeError, match="written to in place"):
            weight.data = torch.zeros_like(weight)


def merge_inside(model: Any, safe: bool) -> None:
    import peft

    with frozen(model, mask_of(model)):
        config = peft.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
        peft.get_peft_model(model, config).merge_and_unload(safe_merge=safe)


@pytest.mark.parametrize("safe", [False, True])
def test_merging_an_adapter_inside_is_an_error(safe: bool) -> None:
    pytest.importorskip("peft")
    with pytest.raises(RuntimeError, match="written to in place"):
        merge_inside(made("plain"), safe)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_training_and_loading_are_none(kind: str) -> None:
    """Whoever reads weights, through ``.data`` too, and trains through the slices is left alone."""
    model = made(kind)
    before = weights(model) if kind == "plain" else {n: p.clone() for n, p in model.named_parameters()}
    with frozen(model, mask_of(model)) as handle:
        owner, leaf = owner_of(model, kind)
        held = getattr(owner, leaf)
        assert torch.equal(held.data.clone(), held.detach())
        assert type(held + 1) is torch.Tensor
        assert float(held.norm()) == float(held.data.norm())
        optimizer = torch.optim.AdamW(handle.trainable_parameters(), lr=1e-2, weight_decay=0.1)
        for batch in batches(2):
            (loss_of(model, batch) + getattr(owner, leaf).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.load_state_dict(model.state_dict())
        handle.verify()
    assert sum(not torch.equal(p, before[name]) for name, p in model.named_parameters()) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_inside_runs_in_inference_mode(kind: str) -> None:
    model = made(kind)
    batch = batches(1)[0]
    with torch.no_grad():
        before = loss_of(model, batch)
    with frozen(model, mask_of(model)):
        with torch.inference_mode():
            inside = loss_of(model, batch)
        loss_of(model, batch).backward()  # and it trains afterwards as before
    assert torch.equal(inside, before)
