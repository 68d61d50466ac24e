"""Which entries of each linear map belong to units."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.vocabulary import MIXTURE_SITES
from safecircuits.baselines.earlier import matrices_of, same_view
from safecircuits.masks.freeze_mask import FreezeMask, require_mask, units_of
from safecircuits.model.parameters import as_hooked


def require_units_of(units: Any, name: str) -> FreezeMask:
    """A setting that is a set of units, of which there must be some."""
    mask = require_mask(units, name)
    if not mask:
        raise ValueError(f"{name} names no unit")
    return mask


@torch.no_grad()
def entries_in_matrices(model: Any, units: FreezeMask) -> dict[str, Bool[Tensor, "out in"]]:
    """By ``layer.component``, True where an entry belongs to the units; matrices that have none are left out."""
    hooked = as_hooked(model)
    units = units_of(hooked, units)
    if any(units.at(site).any() for site in MIXTURE_SITES):
        raise ValueError(
            "this method works matrix by matrix, and the experts of a mixture are fused ones of three dimensions: give "
            "it units of the sites mlp and attn; freeze= takes experts, too"
        )
    masks = units.hooked_masks(hooked)
    by_id = {id(parameter): masks[name] for name, parameter in hooked.named_parameters() if name in masks}
    found = {}
    for key, matrix in matrices_of(model).items():
        where = by_id.get(id(matrix.owner))
        if where is not None:
            flags = torch.empty_like(matrix.owner, dtype=torch.float32).copy_(where)
            chosen = same_view(matrix, flags).read() > 0
            if chosen.any():
                found[key] = chosen
    return found
