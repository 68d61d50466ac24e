"""Take a direction out of the residual stream of a running model, or add it (Arditi et al. 2024, §2.4).

Everything that a layer reads is x − r̂ r̂ᵀ x instead of x, with r̂ the unit direction, at every token: what the embedding,
every attention and every MLP write lacks the direction then. A projection is linear and needs doing but once, so
projecting the stream wherever it is read is the same as projecting each part that is written to it.

Without any of it is not how a model is on a harmless prompt: its states have some of the direction there, too, and for
some models none of it is itself a reason to refuse. The affine ablation puts the share to what harmless prompts have on
average, x − r̂ (r̂ᵀ x − level) (Marshall et al. 2024, "Refusal in LLMs is an affine function").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.direction.vector import Direction, direction_of, residual_places, unit_of
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.sites import HookedModel, resid_post

To = Literal["zero", "harmless"]


@checked
@contextmanager
def direction_ablated(
    model: HookedModel,
    direction: Direction | Float[Tensor, " d_model"],
    *,
    to: To = "zero",
    layers: Sequence[int] | None = None,
) -> Iterator[None]:
    """Inside the block nothing that a layer reads, and nothing that is unembedded, has any of the direction.

    The same as ``orthogonalised`` weights, and it can be done on models where no edit of weights is exact.

    Args:
        direction: a Direction, or a vector; its length does not matter.
        to: ``"harmless"`` puts the share to the harmless prompts' mean at each place instead of zero (affine); for a
            Direction that knows it.
        layers: only what is after these layers, 0-indexed. The level is that of one position of a prompt, so that
            putting every token to it everywhere, those of the answer among them, breaks more than putting it once,
            after the direction's own layer: ``layers=[direction.layer]``.

    Raises:
        ValueError: for another model's direction or one of another width, a zero vector, a layer outside the model, and
            ``"harmless"`` without levels.

    Examples:
        >>> found = sc.direction.mean_directions(model, malicious, normal).at(layer=5)
        >>> with sc.direction.direction_ablated(model, found, to="harmless", layers=[found.layer]):
        ...     answers = sc.generate(model, malicious)
        >>> int(sc.refused(answers).sum())
        0
    """
    with attached(model, ablation_hooks(model, direction, to, layers), per_token=True):
        yield


def ablation_hooks(
    model: HookedModel, direction: Direction | Tensor, to: To = "zero", layers: Sequence[int] | None = None
) -> dict[str, HookFn]:
    """The hooks of ``direction_ablated``, for passes that bring their own."""
    if to not in get_args(To):
        raise ValueError(f"to is 'zero' or 'harmless', not {to!r}")
    found = direction_of(model, direction)
    places = residual_places(model)
    if layers is not None:
        places = {2 * layer + 2: places[2 * layer + 2] for layer in (_inside(model, layer) for layer in layers)}
    levels = found.levels if isinstance(found, Direction) else torch.empty(0)
    if to == "harmless" and len(levels) != 2 * int(model.cfg.n_layers) + 1:
        raise ValueError("a direction that does not know what harmless prompts have of it can be ablated to zero alone")
    unit = unit_of(found.vector if isinstance(found, Direction) else found)
    target = {place: float(levels[place]) if to == "harmless" else 0.0 for place in places}
    unknown = [places[place] for place, level in target.items() if level != level]
    if unknown:
        raise ValueError(f"the direction has no level for {unknown[0]}: measure it on this backend")
    return {name: _Projected(unit, target[place]) for place, name in places.items()}


@checked
@contextmanager
def direction_added(
    model: HookedModel,
    direction: Direction | Float[Tensor, " d_model"],
    layer: int | None = None,
    scale: float = 1.0,
) -> Iterator[None]:
    """Inside the block ``scale`` times the vector, its length included, is added after ``layer`` at every token.

    Arditi et al. add the difference of means (scale 1) where it was measured, which makes harmless prompts refused;
    they count what enters a block, so that their layer l is l − 1 here.

    Args:
        layer: 0-indexed; the direction's own unless given.
        scale: below zero takes it away.

    Raises:
        ValueError: for another model's direction or width, a plain vector without a layer, a layer outside the model.

    Examples:
        >>> found = sc.direction.mean_directions(model, malicious, normal).at(layer=5)
        >>> with sc.direction.direction_added(model, found):
        ...     answers = sc.generate(model, normal)
    """
    with attached(model, addition_hooks(model, direction, layer, scale), per_token=True):
        yield


def addition_hooks(
    model: HookedModel, direction: Direction | Tensor, layer: int | None = None, scale: float = 1.0
) -> dict[str, HookFn]:
    """The hooks of ``direction_added``, for passes that bring their own."""
    found = direction_of(model, direction)
    if layer is None:
        if not isinstance(found, Direction):
            raise ValueError("a plain vector has no layer of its own: name the one after which it is added")
        layer = found.layer
    _inside(model, layer)
    vector = (found.vector if isinstance(found, Direction) else found).detach().float() * scale

    def add(resid: Tensor) -> Tensor:
        return (resid.float() + vector.to(resid.device)).to(resid.dtype)

    return {resid_post(layer): add}


def _inside(model: HookedModel, layer: int) -> int:
    n_layers = int(model.cfg.n_layers)
    if not 0 <= layer < n_layers:
        raise ValueError(f"layer {layer} is outside the model, whose layers are 0 to {n_layers - 1}")
    return layer


class _Projected:
    """x − r̂ (r̂ᵀ x − level), in float32 whatever the model computes in."""

    def __init__(self, unit: Float[Tensor, " d_model"], level: float) -> None:
        self.unit, self.level = unit.float(), level

    def __call__(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if self.unit.device != resid.device:
            self.unit = self.unit.to(resid.device)
        wide = resid.float()
        share = wide @ self.unit - self.level
        return (wide - share[..., None] * self.unit).to(resid.dtype)
