"""Hook points at the neurons of experts, which no module gives: they arise between the two products of a fused layer.

Every implementation of transformers' experts interface that can be hooked makes them by ``_apply_gate``, for the tokens
of all experts at once. That is where a hook point is put, and one beside it that tells which expert each row is of.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from safecircuits.model.attach import HookFn, marked
from safecircuits.model.mixtures import INDEX, NEURONS, SHARED, Mixture, look

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
    """Which experts the tokens of the present pass go to, for hooks at their neurons: ``[batch pos top_k]``."""

    index: Tensor

    def __init__(self, layer: int) -> None:
        self.hooks: dict[str, HookFn] = {f"blocks.{layer}.mlp.{INDEX}": self._take}

    def _take(self, index: Tensor) -> None:
        self.index = index


def _tapped(mixture: Mixture) -> dict[str, Any]:
    from transformer_lens.hook_points import HookPoint

    experts = mixture.experts
    if not isinstance(experts.__dict__.get("_apply_gate"), MethodType):  # a copy of a bridge's model has it already
        experts._apply_gate = MethodType(_gated, experts)
        experts.register_forward_pre_hook(_note_routing, with_kwargs=True)
        mixture.block.register_forward_pre_hook(_note_batch, with_kwargs=True)
        if mixture.shared is not None:
            mixture.shared[2].register_forward_pre_hook(_at_shared)
    points = {NEURONS: HookPoint(), INDEX: HookPoint()}
    experts.hook_neurons, experts.hook_index = points[NEURONS], points[INDEX]
    told: list[Any] = [experts]
    if mixture.shared is not None:
        points[SHARED] = HookPoint()
        mixture.shared[2].hook_neurons = points[SHARED]
        told.append(mixture.shared[2])
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
    """The neurons of each token at each of its experts, past the hook point."""
    rows: Tensor = type(experts)._apply_gate(experts, gate_up)
    point = experts.hook_neurons
    if not point._forward_hooks and not point._backward_hooks:
        return rows
    experts_of_rows = experts.routed_to.reshape(-1)
    if experts.config._experts_implementation == "batched_mm":
        return _hooked(experts, rows)
    # grouped_mm sorts its rows by expert; a stable order is not asked for, so it is the very same call that tells it.
    order = torch.sort(experts_of_rows).indices
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return _hooked(experts, rows[back])[order]


def _hooked(experts: Any, rows: Tensor) -> Tensor:
    seen: Tensor = experts.hook_neurons(rows.reshape(*experts.leading, experts.routed_to.shape[-1], -1))
    return seen.reshape(rows.shape)


def _at_shared(down: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    neurons: Tensor = down.hook_neurons(args[0].reshape(*down.leading, -1))
    return (neurons.reshape(args[0].shape),)


for hook in (_note_batch, _note_routing, _at_shared):
    marked(hook, "part_of_model")
