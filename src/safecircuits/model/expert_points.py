"""Hook points at the neurons of experts, which no module gives: they arise between the two products of a fused layer.

Every implementation of transformers' experts interface that can be hooked makes them by ``_apply_gate``, for the tokens
of all experts at once. That is where a hook point is put, and one beside it that tells which expert each row is of.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.model.attach import marked
from safecircuits.model.mixtures import INDEX, MAPS, NEURONS, SHARED_MAPS, Mixture, look, rows_of

HOOKABLE = ("grouped_mm", "batched_mm")
"""Implementations of experts whose order of rows is known."""


def add_expert_points(bridge: Any) -> None:
    """Give the mixtures of a bridge hook points at their neurons; what is there stays."""
    for layer, block in enumerate(bridge.blocks):
        sublayer = getattr(block, "mlp", None)
        mixture, _ = look(sublayer)
        if mixture is None or f"blocks.{layer}.mlp.{NEURONS}" in bridge.hook_dict:
            continue
        points = _tapped(mixture)
        for name, point in points.items():
            setattr(sublayer, name, point)
            point.name = f"blocks.{layer}.mlp.{name}"
            bridge._hook_registry[point.name] = point


def require_expert_points(model: Any, layer: int) -> None:
    """Give the model hook points at its experts if it has none yet, as a bridge that was not made here.

    Raises:
        ValueError: if the experts are computed by an implementation that hooks cannot reach into.
    """
    add_expert_points(model)
    mixture, _ = look(model.blocks[layer].mlp)
    assert mixture is not None
    used = mixture.experts.config._experts_implementation
    if used not in HOOKABLE:
        raise ValueError(
            f"the experts of layer {layer} are computed by experts_implementation={used!r}, where no hook reaches "
            f"their neurons; use {' or '.join(map(repr, HOOKABLE))}: set_experts_implementation({HOOKABLE[0]!r}) on "
            "the Hugging Face model"
        )


class Routing:
    """Which experts the tokens of the present pass go to, for hooks at their neurons."""

    def __init__(self, model: Any, layer: int) -> None:
        mixture, _ = look(model.blocks[layer].mlp)
        assert mixture is not None
        self.mixture = mixture

    @property
    def index(self) -> Int[Tensor, "batch pos top_k"]:
        """The experts of each token."""
        experts = self.mixture.experts
        index: Tensor = experts.routed_to
        return index.reshape(*experts.leading, -1)


class ExpertBias(Routing):
    """The bias in what the gate or the input map gives, of the experts that tokens go to at present."""

    def __init__(self, model: Any, layer: int, part: str) -> None:
        super().__init__(model, layer)
        experts, width = self.mixture.experts, self.mixture.d_expert
        rows = rows_of(experts, torch.arange(width))[slice(None, width) if part == "gate" else slice(width, None)]
        bias = experts.gate_up_proj_bias.detach()
        self._by_expert: Tensor = bias.index_select(1, rows.to(bias.device))

    def __call__(self) -> Float[Tensor, "batch pos top_k d_expert"]:
        index = self.index
        return self._by_expert.to(index.device)[index]


def _tapped(mixture: Mixture) -> dict[str, Any]:
    from transformer_lens.hook_points import HookPoint

    experts = mixture.experts
    if not isinstance(experts.__dict__.get("_apply_gate"), MethodType):  # a copy of a bridge's model has it already
        experts._apply_gate = MethodType(_gated, experts)
        experts.register_forward_pre_hook(_note_routing, with_kwargs=True)
        mixture.block.register_forward_pre_hook(_note_batch, with_kwargs=True)
        for linear in mixture.shared or ():
            linear.register_forward_pre_hook(_at_shared)
    points = {INDEX: HookPoint()}
    experts.hook_index = points[INDEX]
    for part, name in MAPS.items():
        points[name] = HookPoint()
        setattr(experts, f"hook_{part}", points[name])
    told: list[Any] = [experts, *(mixture.shared or ())]
    for linear, name in zip(mixture.shared or (), SHARED_MAPS.values(), strict=False):
        points[name] = HookPoint()
        linear.hook_given = points[name]
    mixture.block.__dict__["told_of_batch"] = told
    return points


def _note_batch(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Inside a mixture all tokens are in one row; outside they are ``[batch pos]``."""
    given = args[0] if args else kwargs["hidden_states"]
    for module in block.told_of_batch:
        module.leading = given.shape[:-1]


def _note_routing(experts: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    index = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and not x.is_floating_point())
    experts.routed_to = index.detach()
    experts.hook_index(experts.routed_to.reshape(*experts.leading, -1))


def _gated(experts: Any, gate_up: Tensor) -> Tensor:
    """The neurons of each token at each of its experts, past the hook points at either end of the gate."""
    if _is_hooked(experts.hook_gate) or _is_hooked(experts.hook_in):
        rows = rows_of(experts, torch.arange(gate_up.shape[-1] // 2)).to(gate_up.device)
        outputs = (
            _past(experts, point, part)
            for point, part in zip(
                (experts.hook_gate, experts.hook_in), gate_up.index_select(-1, rows).chunk(2, -1), strict=True
            )
        )
        gate_up = torch.cat(list(outputs), -1).index_select(-1, rows.argsort())
    neurons: Tensor = type(experts)._apply_gate(experts, gate_up)
    return _past(experts, experts.hook_out, neurons)


def _is_hooked(point: Any) -> bool:
    return bool(point._forward_hooks or point._backward_hooks)


def _past(experts: Any, point: Any, rows: Tensor) -> Tensor:
    """Rows of tokens at experts, in whatever order, past a hook point that has them by token."""
    if not _is_hooked(point):
        return rows
    shape = (*experts.leading, experts.routed_to.shape[-1], -1)
    if experts.config._experts_implementation == "batched_mm":
        seen: Tensor = point(rows.reshape(shape))
        return seen.reshape(rows.shape)
    # grouped_mm sorts its rows by expert; a stable order is not asked for, so it is the very same call that tells it.
    order = torch.sort(experts.routed_to.reshape(-1)).indices
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    hooked: Tensor = point(rows[back].reshape(shape))
    return hooked.reshape(rows.shape)[order]


def _at_shared(linear: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not _is_hooked(linear.hook_given):
        return None
    given: Tensor = linear.hook_given(args[0].reshape(*linear.leading, -1))
    return (given.reshape(args[0].shape),)


for hook in (_note_batch, _note_routing, _at_shared):
    marked(hook, "part_of_model")
