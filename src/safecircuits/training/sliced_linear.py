"""A linear map whose weight is held in two pieces, and whose weight gradient is computed for one of them only.

The map itself is the ordinary one: the pieces are put together first, so the forward pass has the same bits. Putting
together costs one copy of the weight, which is little beside multiplying it with a batch; the saving is that the
product of outputs and inputs, a third of a training step, is taken over the trainable rows or columns alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from safecircuits.training.along import Along

# Of an input of which less than this share is needed for the weight gradient, only that share is kept for backward.
_KEEP_SHARE = 0.5


class PutTogether(torch.autograd.Function):
    """``Along.together`` as a step of the graph; its gradient goes to ``part`` alone."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, rest: Tensor, order: Tensor, index: Tensor, along: Along) -> Tensor:
        ctx.along = along
        ctx.save_for_backward(index)
        return along.together(part, rest, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return ctx.along.select(gradient, index), None, None, None, None


def sliced_linear(
    x: Float[Tensor, "... d_in"],
    part: Float[Tensor, "..."],
    rest: Float[Tensor, "..."],
    bias: Float[Tensor, " d_out"] | None,
    order: Int[Tensor, " whole"],
    index: Int[Tensor, " trainable"],
    along: Along,
    input_first: bool,
) -> Float[Tensor, "... d_out"]:
    """``x`` through the weight that ``part`` (its slice ``index`` along one axis) and ``rest`` make up.

    Args:
        input_first: whether the weight is ``[d_in, d_out]`` (GPT-2's Conv1D) and not ``[d_out, d_in]`` (nn.Linear).
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)

        def lowered(t: Tensor) -> Tensor:
            return t if t.dtype == torch.float64 else t.to(dtype)  # as autocast itself treats float64

        x, part, rest, bias = lowered(x), lowered(part), lowered(rest), None if bias is None else lowered(bias)
        with torch.autocast(device, enabled=False):
            return _apply(x, part, rest, bias, order, index, along, input_first)
    return _apply(x, part, rest, bias, order, index, along, input_first)


def _apply(
    x: Tensor,
    part: Tensor,
    rest: Tensor,
    bias: Tensor | None,
    order: Tensor,
    index: Tensor,
    along: Along,
    input_first: bool,
) -> Tensor:
    if not (torch.is_grad_enabled() and part.requires_grad):
        return _linear(x, along.together(part, rest, order), bias, input_first)
    return cast(Tensor, _SlicedLinear.apply(x, part, rest, bias, order, index, along, input_first))  # type: ignore[no-untyped-call]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, input_first: bool) -> Tensor:
    """As ``nn.Linear`` and as Conv1D compute it, to the bit."""
    if not input_first:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    out = rows @ weight if bias is None else torch.addmm(bias, rows, weight)
    return out.view(*x.shape[:-1], weight.shape[1])


class _SlicedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        part: Tensor,
        rest: Tensor,
        bias: Tensor | None,
        order: Tensor,
        index: Tensor,
        along: Along,
        input_first: bool,
    ) -> Tensor:
        ctx.along, ctx.input_first = along, input_first
        ctx.cuts_input = along.at == (0 if input_first else 1)
        ctx.selected = ctx.cuts_input and len(index) < _KEEP_SHARE * len(order)
        ctx.save_for_backward(x.index_select(-1, index) if ctx.selected else x, part, rest, order, index)
        return _linear(x, along.together(part, rest, order), bias, input_first)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, part, rest, order, index = ctx.saved_tensors
        out = gradient.reshape(-1, gradient.shape[-1])
        to_x = to_part = to_bias = None
        if ctx.needs_input_grad[0]:
            weight = ctx.along.together(part, rest, order)
            to_x = (out @ (weight.T if ctx.input_first else weight)).view(*gradient.shape[:-1], -1)
            del weight
        if ctx.needs_input_grad[1]:
            inputs = x.reshape(-1, x.shape[-1])
            if ctx.cuts_input:
                left, right = out, inputs if ctx.selected else inputs.index_select(1, index)
            else:
                left, right = out.index_select(1, index), inputs
            to_part = right.T @ left if ctx.input_first else left.T @ right
        if ctx.needs_input_grad[3]:
            to_bias = out.sum(0)
        return to_x, to_part, None, to_bias, None, None, None, None
