"""Tensors held in two pieces: the linear map and its gradients, memory, arithmetic, state dicts, compiled models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_freeze import KINDS, MIXED, UNITS, batches, loss_of
from test_freeze_mask import SHAPE, tiny_gpt2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from conftest import build_tiny_llama
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.training import frozen
from safecircuits.training.along import Along
from safecircuits.training.loss import logits
from safecircuits.training.slices import Slice, hold_apart

RU_ONLY = ~FreezeMask.of_units({"mlp": dict.fromkeys(range(3), range(10)), "attn": {1: [0]}}, SHAPE)


@st.composite
def linear_maps(draw: Any) -> tuple[nn.Module, int, Tensor, Tensor]:
    """A linear layer of either layout, the axis it is cut along, what trains of it, and an input."""
    from transformers.pytorch_utils import Conv1D

    d_in, d_out = draw(st.integers(2, 7)), draw(st.integers(2, 7))
    torch.manual_seed(draw(st.integers(0, 99)))
    conv = draw(st.booleans())
    layer = Conv1D(d_out, d_in) if conv else nn.Linear(d_in, d_out, bias=draw(st.booleans()))
    axis = draw(st.integers(0, 1))
    n = layer.weight.shape[axis]
    index = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))
    x = torch.randn(*draw(st.sampled_from([(3,), (2, 3), (2, 3, 2)] if not conv else [(3,), (2, 3)])), d_in)
    return layer.double(), axis, torch.tensor(index), x.double()


@settings(max_examples=80)
@given(case=linear_maps())
def test_a_cut_layer_is_the_layer_and_its_gradients_are_the_slices(case: tuple[nn.Module, int, Tensor, Tensor]) -> None:
    layer, axis, index, x = case
    original, bias = layer.weight, layer.bias
    x.requires_grad_(True)
    expected = layer(x)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, original] + ([bias] if bias is not None else []), upstream)
    hold_apart(layer, {"weight": Slice(original, Along.axis(original, axis), index)})
    out = layer(x)
    assert torch.equal(out, expected)
    part = layer.weight_slice.part
    got = torch.autograd.grad(out, [x, part] + ([bias] if bias is not None else []), upstream)
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1].index_select(axis, index))
    if bias is not None:
        torch.testing.assert_close(got[2], wanted[2])
    assert torch.equal(layer.weight, original)
    (read,) = torch.autograd.grad((layer.weight * original).sum(), part)
    torch.testing.assert_close(read, original.index_select(axis, index))


@pytest.mark.parametrize("bias", [False, True])
def test_autocast_rounds_as_it_does_without_a_freeze(bias: bool) -> None:
    layer, x = nn.Linear(16, 12, bias=bias), torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(x)
    expected.float().sum().backward()
    wanted = layer.weight.grad
    hold_apart(layer, {"weight": Slice(layer.weight, Along.axis(layer.weight, 0), torch.tensor([0, 5, 7]))})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    out.float().sum().backward()
    part = layer.weight_slice.part
    assert part.grad.dtype == torch.float32
    torch.testing.assert_close(part.grad, wanted[[0, 5, 7]])


def test_the_weight_gradient_of_frozen_units_is_not_computed(tiny_llama_hf: Any) -> None:
    """Counted multiplications of a step: all but a sixth of the units' weight gradients are left out."""
    batch = batches(1, padding=0)[0]

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            loss_of(tiny_llama_hf, batch).backward()
        return counter.get_total_flops()

    everything = flops()
    tokens = batch.input_ids.numel()
    weights = 2 * tokens * sum(int(m.sum()) for m in RU_ONLY.parameter_masks(tiny_llama_hf).values())
    with frozen(tiny_llama_hf, RU_ONLY):
        assert flops() == everything - weights


@pytest.mark.parametrize("mask", [UNITS, RU_ONLY])
def test_the_model_is_in_memory_once(mask: FreezeMask, tiny_llama_hf: Any) -> None:
    def held() -> int:
        own = [*tiny_llama_hf.parameters(), *(m.rest for m in tiny_llama_hf.modules() if isinstance(m, Slice))]
        return sum(t.numel() for t in own)

    before, originals = held(), list(tiny_llama_hf.parameters())
    with frozen(tiny_llama_hf, mask):
        assert held() == before
        assert sum(p.numel() for p in originals) < before
    assert held() == before == sum(p.numel() for p in originals)


def test_moving_and_casting_moves_both_pieces() -> None:
    layer = nn.Linear(4, 4)
    hold_apart(layer, {"weight": Slice(layer.weight, Along.axis(layer.weight, 0), torch.tensor([1]))})
    layer.double()
    piece = layer.weight_slice
    assert (piece.part.dtype, piece.rest.dtype, piece.index.dtype) == (torch.float64, torch.float64, torch.int64)
    assert layer(torch.randn(2, 4).double()).dtype == torch.float64
    layer.to("meta")
    assert {t.device.type for t in (piece.part, piece.rest, piece.index, piece.order)} == {"meta"}


# --- state dicts -------------------------------------------------------------------------------------------------


def moved(handle: Any) -> None:
    with torch.no_grad():
        for parameter in handle.trainable_parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_inside_are_those_of_the_model(kind: str, make_tiny_model: Callable[..., Any]) -> None:
    model, batch = make_tiny_model(kind), batches(1)[0]
    outside = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    with frozen(model, MIXED) as handle:
        moved(handle)
        inside = {name: value.clone() for name, value in model.state_dict().items()}
        answer = logits(model, batch)
        assert [(name, (value.shape, value.dtype)) for name, value in inside.items()] == list(outside.items())
        moved(handle)
        assert not torch.equal(logits(model, batch), answer)
        model.load_state_dict(inside)
        assert torch.equal(logits(model, batch), answer)
    assert all(torch.equal(value, inside[name]) for name, value in model.state_dict().items())


def test_a_state_dict_with_variables_has_gradients(tiny_llama_hf: Any) -> None:
    with frozen(tiny_llama_hf, UNITS) as handle:
        name = "model.layers.0.mlp.up_proj.weight"
        tiny_llama_hf.state_dict(keep_vars=True)[name].sum().backward()
        assert torch.equal(handle.named_trainable()[name].grad, torch.ones(45, 32))


def test_a_state_dict_that_does_not_fit_is_refused(tiny_llama_hf: Any) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    with frozen(tiny_llama_hf, UNITS):
        good = tiny_llama_hf.state_dict()
        other = {**good, name: good[name] + 1}
        with pytest.raises(RuntimeError, match=r"up_proj.weight cannot be loaded.*frozen entries are not those"):
            tiny_llama_hf.load_state_dict(other)
        with pytest.raises(RuntimeError, match=r"shape is \(2, 2\) there and \(48, 32\) here"):
            tiny_llama_hf.load_state_dict({**good, name: torch.zeros(2, 2)})
        with pytest.raises(RuntimeError, match=r"Missing key.*up_proj.weight"):
            tiny_llama_hf.load_state_dict({key: value for key, value in good.items() if key != name})
        with pytest.raises(RuntimeError, match=r"Unexpected key.*up_proj.other"):
            tiny_llama_hf.load_state_dict({**good, "model.layers.0.mlp.up_proj.other": torch.zeros(2)})


@pytest.mark.parametrize("tied", [False, True])
def test_save_pretrained_inside_reloads_in_plain_transformers(tied: bool, tmp_path: Path) -> None:
    model, batch = build_tiny_llama(tie_word_embeddings=tied), batches(1)[0]
    with frozen(model, MIXED) as handle:
        moved(handle)
        model.save_pretrained(tmp_path / "m")
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
        assert torch.equal(logits(reloaded, batch), logits(model, batch))
        assert (reloaded.lm_head.weight is reloaded.model.embed_tokens.weight) == tied
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


# --- what other machinery does to a model ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("build", [build_tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(build: Callable[[], Any], reentrant: bool) -> None:
    from test_fused import bridged

    from safecircuits.model.sites import ModelShape

    model, batch = build(), batches(1)[0]
    shape = ModelShape.of(bridged(model))
    mask = FreezeMask.of_units({"mlp": {0: [1, 5, 40]}, "attn": {0: [0, 1]}}, shape) | FreezeMask.layers(1)
    with frozen(model, mask) as handle:
        loss_of(model, batch).backward()
        wanted = {name: p.grad.clone() for name, p in handle.named_trainable().items()}
        model.zero_grad()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        loss_of(model, batch).backward()
        for name, parameter in handle.named_trainable().items():
            torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


@pytest.mark.parametrize("before", [True, False])
def test_a_compiled_model_trains_and_comes_back(before: bool, tiny_llama_hf: Any) -> None:
    """Dynamo and AOT autograd trace the cut model; the inductor behind them takes minutes and only makes kernels."""
    torch._dynamo.reset()
    ids = batches(1, padding=0)[0].input_ids
    compiled = torch.compile(tiny_llama_hf, backend="aot_eager")
    with torch.no_grad():
        outside = compiled(ids).logits if before else tiny_llama_hf(ids).logits
    with frozen(compiled if before else tiny_llama_hf, MIXED) as handle:
        gradients = []
        for model in (tiny_llama_hf, compiled):
            model(ids).logits.square().mean().backward()
            gradients.append([p.grad.clone() for p in handle.trainable_parameters()])
            tiny_llama_hf.zero_grad()
        torch.testing.assert_close(gradients[1], gradients[0])
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids).logits, outside)


def test_changing_a_slice_between_forward_and_backward_is_an_error(tiny_llama_hf: Any) -> None:
    with frozen(tiny_llama_hf, UNITS) as handle:
        loss = loss_of(tiny_llama_hf, batches(1)[0])
        moved(handle)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_linear_layers_with_a_forward_of_their_own_still_train() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, 2 * self.weight, self.bias)

    layer, x = Scaled(4, 3), torch.randn(2, 4)
    expected, whole = layer(x), layer.weight
    hold_apart(layer, {"weight": Slice(whole, Along.axis(whole, 1), torch.tensor([2]))})
    assert torch.equal(layer(x), expected)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight_slice.part.grad, 2 * x.sum(0)[2].expand(3, 1))
