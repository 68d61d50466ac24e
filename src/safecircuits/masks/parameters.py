"""A set of units meets a model: which entries of which parameters are theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from safecircuits.base.vocabulary import ALL_SITES, Site
from safecircuits.masks.reading import Chosen
from safecircuits.model.parameters import (
    Masks,
    as_hooked,
    checkpoint_parameters,
    in_checkpoint_names,
    is_plain,
    live_parameters,
)
from safecircuits.model.sites import is_bridge
from safecircuits.model.unit_weights import layer_parameters, parameters_inside, unit_parameter_masks, unit_parameters


def masks_on(model: Any, chosen: Chosen) -> tuple[Masks, Masks]:
    """Boolean tensors by the names that a model computes with, and by those of its checkpoint.

    They are the same but for a bridge, whose own names are those of ``hooked_masks``.
    """
    hooked, stored = as_hooked(model), checkpoint_parameters(model)
    masks = hooked_masks(hooked, chosen)
    if is_plain(model) or is_bridge(model):
        found = in_checkpoint_names(hooked, masks, stored)
    else:
        found = {name: mask for name, mask in masks.items() if name in stored}
    if any(rows.any() for rows in chosen.values()) and not any(mask.any() for mask in found.values()):
        raise ValueError("the freeze mask names units, but not one parameter of this model belongs to them")
    return (found if is_plain(model) else masks), found


def hooked_masks(model: Any, chosen: Chosen) -> Masks:
    """The same by a hooked model's own names."""
    masks: Masks = {}
    own = dict(model.named_parameters())
    live = live_parameters(model) if _some_in_part(chosen) else {}
    for layer in range(len(chosen["mlp"])):
        for site in ALL_SITES:
            frozen = chosen[site][layer]
            if not frozen.any():
                continue
            if frozen.all():
                inside = parameters_inside(model, layer, site)
                whole = [name for name in layer_parameters(model, layer) if id(own[name]) in inside]
                if not whole:
                    raise ValueError(f"layer {layer} of this model has no {site} parameters that could be frozen")
                masks.update({name: torch.ones(own[name].shape, dtype=torch.bool) for name in whole})
            else:
                _require_all_reached(model, site, layer, live)
                masks.update(unit_parameter_masks(model, site, layer, frozen.nonzero().flatten().tolist()))
    return masks


def _some_in_part(chosen: Chosen) -> bool:
    """Whether in some layer and site some units are in the set, but not all."""
    return any(bool(row.any() and not row.all()) for rows in chosen.values() for row in rows)


def _require_all_reached(model: Any, site: Site, layer: int, live: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a sublayer computes with a matrix that is in no unit: freezing units would not hold it."""
    inside = parameters_inside(model, layer, site)
    reached = unit_parameters(model, site, layer)
    matrices = [name for name in layer_parameters(model, layer) if name in live and id(live[name]) in inside]
    beyond = [name for name in matrices if live[name].ndim > 1 and name not in reached]
    if beyond:
        raise ValueError(
            f"the {site} units of layer {layer} cannot be frozen one by one: the layer also computes with "
            f"{beyond[0].replace('._original_component', '')}, which belongs to none of them; freeze the whole layer"
        )
