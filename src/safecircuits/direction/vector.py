"""One direction of the residual stream, and the places of the residual stream at which it can be acted upon."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.model.attach import HookFn, attached, without_hooks
from safecircuits.model.forward import device_of, n_embeddings, run
from safecircuits.model.sites import HookedModel, ModelShape, is_bridge, require_hooked, resid_post
from safecircuits.prompts.batching import Batch
from safecircuits.results.result import Result


@dataclass(frozen=True)
class Direction(Result):
    """A direction of one model's residual stream.

    Attributes:
        vector: as it was measured, its length included: a difference of means is added as it is.
        layer: it is of the residual stream after this block, 0-indexed.
        position: of this token, counted from the prompt's end: -1 is the last one.
        levels: how much of the unit direction the harmless prompts' mean has at each place of the residual stream
            (before the first block; then within and after each), which the affine ablation puts it to; NaN at places
            that the model does not have, and no entries where they were not measured.

    Examples:
        >>> directions = sc.direction.mean_directions(model, malicious, normal)
        >>> chosen = directions.at(layer=5, position=-1)
        >>> chosen.vector.shape, chosen.layer
        (torch.Size([128]), 5)
    """

    vector: Float[Tensor, " d_model"]
    layer: int
    position: int
    levels: Float[Tensor, " place"]
    shape: ModelShape
    provenance: dict[str, Any]

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """The same of length 1, float64."""
        return unit_of(self.vector)

    def __str__(self) -> str:
        return f"direction after layer {self.layer} at token {self.position}, of length {float(self.vector.norm()):.2f}"


def unit_of(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """The vector at length 1, float64.

    Raises:
        ValueError: for a vector that is zero or not finite.
    """
    wide = vector.detach().double()
    length = float(wide.norm())
    if not 0 < length < float("inf"):
        raise ValueError(f"a direction has a finite length above zero, and this one has {length:g}")
    return wide / length


def direction_of(model: HookedModel, direction: Any) -> Direction | Float[Tensor, " d_model"]:
    """``direction``, a Direction or a plain vector, once it is sure that it is one of this model.

    Raises:
        ValueError: for another model's direction, a vector of another width, and what is no direction.
    """
    require_hooked(model)
    if isinstance(direction, Direction):
        direction.shape.require_same(ModelShape.of(model), "the direction")
        unit_of(direction.vector)
        return direction
    if not isinstance(direction, Tensor):
        raise ValueError(
            f"a direction is a Direction (refusal_direction(...).chosen, say) or a vector of d_model numbers, not a "
            f"{type(direction).__name__}"
        )
    width = int(model.cfg.d_model)
    if tuple(direction.shape) != (width,):
        raise ValueError(f"the residual stream of this model has d_model {width}, not {list(direction.shape)}")
    unit_of(direction)
    return direction


def residual_places(model: HookedModel) -> dict[int, str]:
    """Hook points that see all that is read from the residual stream and what it is at last, by place.

    Place 0 is before the first block, 2·layer + 1 between attention and MLP, and 2·layer + 2 after the layer. Where
    both read the same stream (GPT-NeoX, Falcon, Phi-2) there is none in between. Hooks at all of them reach everything
    that layers read, whether a point is the stream itself or, as on a bridge, what the MLP is given of it.

    Raises:
        ValueError: for a model whose layers read a stream in between that no hook point shows.
    """
    names = model.hook_dict
    places = {0: "blocks.0.hook_resid_pre"}
    for layer in range(int(model.cfg.n_layers)):
        between = f"blocks.{layer}.hook_resid_mid"
        if between in names:
            places[2 * layer + 1] = between
        elif layer in _hidden_between(model):
            raise ValueError(
                f"the parts of layer {layer} of this {ModelShape.of(model).architecture} read the residual stream one "
                "after the other, and no hook point shows it in between, so a direction cannot be taken out there"
            )
        places[2 * layer + 2] = resid_post(layer)
    return places


_HIDDEN: weakref.WeakKeyDictionary[Any, frozenset[int]] = weakref.WeakKeyDictionary()


def _hidden_between(model: HookedModel) -> frozenset[int]:
    """Layers without a point in between in which what one part writes changes what the MLP reads, found by trying."""
    if model not in _HIDDEN:
        lacking = [i for i in range(int(model.cfg.n_layers)) if f"blocks.{i}.hook_resid_mid" not in model.hook_dict]
        with without_hooks(model), torch.inference_mode():
            _HIDDEN[model] = frozenset(layer for layer in lacking if not _same_input(model, layer))
    return _HIDDEN[model]


def _same_input(model: HookedModel, layer: int) -> bool:
    """Whether the MLP gives the same when the attention of its layer gives twice as much."""
    block, names = f"blocks.{layer}", model.hook_dict
    mlp = f"{block}.mlp.hook_out" if is_bridge(model) else f"{block}.hook_mlp_out"
    attn = f"{block}.attn.hook_out" if is_bridge(model) else f"{block}.hook_attn_out"
    parts = {name.split(".")[2] for name in names if name.startswith(f"{block}.") and name.endswith(".hook_out")}
    if mlp not in names:
        return True  # one part alone
    if attn not in names:
        return not parts - {"mlp", "ln1", "ln2"}
    seen: list[Tensor] = []

    def double(x: Tensor) -> Tensor:
        return 2 * x

    def keep(x: Tensor) -> None:
        seen.append(x.detach().float().clone())

    ids = torch.arange(1, 7, device=device_of(model))[None] * 7 % n_embeddings(model)
    batch = Batch((0,), ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))
    changes: tuple[dict[str, HookFn], ...] = ({}, {attn: double})
    for change in changes:
        with attached(model, {mlp: keep, **change}):
            run(model, batch)
    return torch.allclose(seen[0], seen[1], rtol=1e-4, atol=1e-6)
