"""What a caller writes down, read: layers in any form, and units by their indices."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from safecircuits.base.arguments import indices as read_indices
from safecircuits.base.arguments import whole
from safecircuits.base.vocabulary import SITES, LayerRange, Site
from safecircuits.model.parameters import as_hooked
from safecircuits.model.sites import ModelShape, require_hooked

Layers = LayerRange | Sequence[int] | Collection[int] | int
"""A LayerRange or (first, last) pair is an inclusive range; a set, frozenset or ``range`` names layers one by one."""

Indices = Mapping[Site, Mapping[int, Iterable[int]]]
"""Units as a person types them: site, layer, indices."""

Chosen = Mapping[Site, Bool[Tensor, "layer unit"]]
"""By site, True for each unit that is in a set."""

_EXPECTED = "units are given by site and layer, such as {'mlp': {5: [3, 7]}, 'attn': {5: [1]}}"


def layer_indices(layers: Layers) -> list[int]:
    """The layers that are meant; see ``Layers``."""
    if hasattr(layers, "__index__") and not getattr(layers, "ndim", 0):  # numpy's numbers and torch's, too
        layers = {whole(layers, "a layer")}
    if isinstance(layers, set | frozenset | range):
        chosen = sorted(set(read_indices(layers, "layers", least=None)))
        if chosen and chosen[0] < 0:
            raise ValueError(f"layers are counted from 0; got {chosen[0]}")
        return chosen
    return list(LayerRange.of(layers).indices)  # type: ignore[arg-type]  # what is left is a range or a pair


def chosen_of(units: Indices, shape: ModelShape) -> dict[Site, Tensor]:
    """Units given by their indices, each as True in a ``[layer, unit]`` tensor of its site.

    Raises:
        ValueError: for anything but units, by site and layer, of a model of this shape.
    """
    if not isinstance(units, Mapping):
        raise ValueError(f"{_EXPECTED}; not as a {type(units).__name__}")
    chosen: dict[Site, Tensor] = {
        site: torch.zeros(shape.n_layers, shape.n_units(site), dtype=torch.bool) for site in SITES
    }
    for site, by_layer in units.items():
        if site not in SITES:
            raise ValueError(f"a site is one of {', '.join(SITES)}, not {site!r}: {_EXPECTED}")
        if not isinstance(by_layer, Mapping):
            raise ValueError(f"{_EXPECTED}; the {site} units are a {type(by_layer).__name__}")
        for layer, given in by_layer.items():
            at = whole(layer, "a layer")
            _require_inside("layer {}", [at], shape.n_layers)
            indices = read_indices(given, f"the {site} units of layer {at}", least=None)
            _require_inside(f"{site} unit {{}} of layer {at}", indices, shape.n_units(site))
            chosen[site][at, indices] = True
    return chosen


def require_chosen(chosen: Mapping[Any, Any], shape: ModelShape | None) -> None:
    """A ValueError unless these are boolean tensors, one a site, of a model of this shape (of any, without one)."""
    for site, rows in chosen.items():
        if site not in SITES:
            raise ValueError(f"a site is one of {', '.join(SITES)}, not {site!r}")
        if not isinstance(rows, Tensor) or rows.dtype != torch.bool:
            what = f"of {rows.dtype}" if isinstance(rows, Tensor) else f"but a {type(rows).__name__}"
            raise ValueError(
                f"the {site} units of a mask are a boolean tensor [layer, unit], True for each unit that is in it, not "
                f"{what}; units by their indices: FreezeMask.of_units({{'mlp': {{5: [3, 7]}}}}, model)"
            )
        wanted = ("layer", 1) if shape is None else (shape.n_layers, shape.n_units(site))
        if rows.ndim != 2 or tuple(rows.shape)[shape is None :] != wanted[shape is None :]:
            raise ValueError(f"the {site} units of this model are [{wanted[0]}, {wanted[1]}], not {list(rows.shape)}")


def expanded(rows: Bool[Tensor, "layer unit"], n_layers: int, n_units: int) -> Bool[Tensor, "layer unit"]:
    """The same units of more layers; a row that is one long stands for all of its layer's units."""
    full = torch.zeros(n_layers, n_units, dtype=torch.bool)
    full[: len(rows)] = rows
    return full


def shape_of(model: Any) -> ModelShape:
    """The shape of a model, plain Hugging Face's or hooked, or that shape itself."""
    if isinstance(model, ModelShape):
        return model
    if not isinstance(model, nn.Module):
        require_hooked(model, "a set of units")
    return ModelShape.of(as_hooked(model))


def ranges(layers: Sequence[int]) -> str:
    """Layer numbers with runs written as first-last: ``0, 3-5``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _require_inside(what: str, indices: Sequence[int], count: int) -> None:
    outside = [i for i in indices if not 0 <= i < count]
    if outside:
        raise ValueError(f"{what.format(outside[0])} does not exist: there are 0 to {count - 1}")
