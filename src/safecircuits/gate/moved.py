"""What training did to the weights of each unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.vocabulary import ALL_SITES, MIXTURE_SITES, Site
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.mixture_masks import unit_slices
from safecircuits.model.sites import HookedModel, ModelShape, has_units, mixture_at
from safecircuits.model.unit_weights import unit_tensors


def unit_changes(before: HookedModel, after: HookedModel) -> dict[Site, Float[Tensor, "layer unit"]]:
    """How far each unit's weights moved, as a part of their norm before: 0 for those that are bit-identical.

    A neuron's are its rows of input and gate matrices, their biases and its column of the output matrix; a head's are
    its slices of Q and O and those of the key/value head that it reads, which it may share. NaN in layers without such
    units.

    Raises:
        ValueError: for models of other shapes, or not of one backend.
    """
    if type(before) is not type(after):
        raise ValueError(
            f"weights are compared unit by unit in two models of one backend, not in a {type(before).__name__} and a "
            f"{type(after).__name__}: load both alike"
        )
    shape = ModelShape.of(before)
    shape.require_same(ModelShape.of(after), "the model after training")
    found: dict[Site, Tensor] = {}
    for site in ALL_SITES:
        rows = torch.full((shape.n_layers, shape.n_units(site)), torch.nan, dtype=torch.float64)
        for layer in range(shape.n_layers):
            if has_units(before, site, layer) and has_units(after, site, layer):
                rows[layer] = _of_layer(before, after, site, layer, shape)
        found[site] = rows
    return found


@torch.no_grad()
def _of_layer(before: Any, after: Any, site: Site, layer: int, shape: ModelShape) -> Float[Tensor, " unit"]:
    n = shape.n_units(site)
    moved, size, differs = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64), torch.zeros(n)
    for (old, axis, counts_kv), (new, _, _) in zip(*(_parts(m, site, layer) for m in (before, after)), strict=True):
        a, b = (one.detach().movedim(axis, 0).reshape(one.shape[axis], -1).cpu() for one in (old, new))
        each = [((b.double() - a.double()) ** 2).sum(1), (a.double() ** 2).sum(1), (a != b).any(1).float()]
        if counts_kv:
            each = [one.repeat_interleave(n // len(one)) for one in each]
        moved, size, differs = moved + each[0], size + each[1], differs + each[2]
    relative = (moved / size.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    # Bits may differ where the distance is 0 (0.0 and −0.0 are equal; a NaN differs from itself).
    return torch.where(differs > 0, relative.clamp_min(torch.finfo(torch.float64).tiny), relative)


def _parts(model: Any, site: Site, layer: int) -> list[tuple[Tensor, int, bool]]:
    """What belongs to the units, the axis that counts them, and whether it counts key/value heads."""
    if site in MIXTURE_SITES and (mixture := mixture_at(model, layer)) is not None:
        return [(part, 0, False) for part in unit_slices(mixture, site)]
    return [(view, axis, counts_kv) for *_, view, axis, counts_kv in unit_tensors(model, site, layer)]


def moved_units(changes: Mapping[Site, Float[Tensor, "layer unit"]], mask: FreezeMask | None) -> dict[str, float]:
    """``units_moved`` and ``units_change`` of the units in ``mask``, or of all; nothing if there are none."""
    parts = [rows[mask.at(site)] if mask is not None else rows.flatten() for site, rows in changes.items()]
    values = torch.cat(parts)
    values = values[~values.isnan()]
    if not len(values):
        return {}
    return {"units_moved": float((values > 0).double().mean()), "units_change": float(values.max())}
