"""What a caller writes down, read: layers in any form, and units by their indices."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from safecircuits.base.arguments import indices as read_indices
from safecircuits.base.arguments import whole
from safecircuits.base.vocabulary import ALL_SITES, MIXTURE_SITES, LayerRange, Site
from safecircuits.masks.describing import ranges
from safecircuits.model.parameters import as_hooked
from safecircuits.model.sites import ModelShape, require_hooked

Layers = LayerRange | Sequence[int] | Collection[int] | int
"""A LayerRange or (first, last) pair is an inclusive range; a set, frozenset or ``range`` names layers one by one."""

Indices = Mapping[Site, Mapping[int, Iterable[int] | Mapping[int, Iterable[int]]]]
"""Units as a person types them: site, layer, indices; neurons of experts by expert, too."""

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
    chosen = no_units(shape)
    for site, by_layer in units.items():
        if site not in ALL_SITES:
            raise ValueError(f"a site is one of {', '.join(ALL_SITES)}, not {site!r}: {_EXPECTED}")
        if not isinstance(by_layer, Mapping):
            raise ValueError(f"{_EXPECTED}; the {site} units are a {type(by_layer).__name__}")
        for layer, given in by_layer.items():
            at = whole(layer, "a layer")
            _require_inside("layer {}", [at], shape.n_layers)
            _require_site(site, at, shape)
            indices = _numbers(site, at, given, shape)
            _require_inside(f"{site} unit {{}} of layer {at}", indices, shape.n_units(site))
            chosen[site][at, indices] = True
    return chosen


def _numbers(site: Site, layer: int, given: Any, shape: ModelShape) -> list[int]:
    """Numbers of units; those of experts' neurons are given by themselves or expert by expert."""
    if not isinstance(given, Mapping):
        return list(read_indices(given, f"the {site} units of layer {layer}", least=None))
    if site != "expert" or shape.mixture is None:
        raise ValueError(f"{_EXPECTED}; the {site} units of layer {layer} are a {type(given).__name__}")
    return [
        shape.mixture.unit(expert, neuron)
        for expert, neurons in given.items()
        for neuron in read_indices(neurons, f"the neurons of expert {expert} of layer {layer}", least=None)
    ]


def _require_site(site: Site, layer: int, shape: ModelShape) -> None:
    """A ValueError if this layer has no units of a site that other models, or other layers, have."""
    if layer in shape.layers_with(site):
        return
    if site in MIXTURE_SITES:
        there = ranges(shape.layers_with(site))
        of = "this model is dense" if shape.mixture is None else f"layers with one are {there or 'none'}"
        what = {"expert": "experts", "shared": "shared expert", "router": "router"}[site]
        raise ValueError(f"layer {layer} of this model has no {what}: {of}")
    raise ValueError(
        f"layer {layer} of this model has no neurons of an MLP: it is a mixture of experts, whose neurons are given by "
        f"layer and expert, such as {{'expert': {{{layer}: {{0: [3, 7]}}}}}}"
    )


def no_units(shape: ModelShape) -> dict[Site, Tensor]:
    """A mask of nothing, by site."""
    return {site: torch.zeros(shape.n_layers, shape.n_units(site), dtype=torch.bool) for site in ALL_SITES}


def present(shape: ModelShape, site: Site) -> Bool[Tensor, "layer 1"]:
    """Which layers have units of a site."""
    rows = torch.zeros(shape.n_layers, 1, dtype=torch.bool)
    rows[list(shape.layers_with(site))] = True
    return rows


def require_chosen(chosen: Mapping[Any, Any], shape: ModelShape | None) -> None:
    """A ValueError unless these are boolean tensors, one a site, of a model of this shape (of any, without one)."""
    for site, rows in chosen.items():
        if site not in ALL_SITES:
            raise ValueError(f"a site is one of {', '.join(ALL_SITES)}, not {site!r}")
        if not isinstance(rows, Tensor) or rows.dtype != torch.bool:
            what = f"of {rows.dtype}" if isinstance(rows, Tensor) else f"but a {type(rows).__name__}"
            raise ValueError(
                f"the {site} units of a mask are a boolean tensor [layer, unit], True for each unit that is in it, not "
                f"{what}; units by their indices: FreezeMask.of_units({{'mlp': {{5: [3, 7]}}}}, model)"
            )
        wanted = ("layer", 1) if shape is None else (shape.n_layers, shape.n_units(site))
        if rows.ndim != 2 or tuple(rows.shape)[shape is None :] != wanted[shape is None :]:
            raise ValueError(f"the {site} units of this model are [{wanted[0]}, {wanted[1]}], not {list(rows.shape)}")
        if shape is not None and (wrong := (rows & ~present(shape, site)).any(1).nonzero()).numel():
            _require_site(site, int(wrong[0]), shape)


def expanded(rows: Bool[Tensor, "layer unit"], shape: ModelShape, site: Site) -> Bool[Tensor, "layer unit"]:
    """The same units of all layers of a model; a row that is one long stands for all of its layer's units."""
    full = torch.zeros(shape.n_layers, shape.n_units(site), dtype=torch.bool)
    full[: len(rows)] = rows
    return full & present(shape, site)


def of_layers(rows: Bool[Tensor, "layer unit"], n_layers: int) -> Bool[Tensor, "layer unit"]:
    """The same units of more layers, of which the further ones have none in the set."""
    return torch.cat([rows, torch.zeros(n_layers - len(rows), rows.shape[1], dtype=torch.bool)])


def unsaid(mixture: Chosen, mlp: Tensor, shape: ModelShape | None) -> Chosen:
    """The units of a mixture that the rest of a mask does not say: none of a dense model, or of layers alone."""
    if shape is None and all(torch.equal(rows, mlp) for rows in mixture.values()):
        return {}
    return {site: rows for site, rows in mixture.items() if shape is None or rows.shape[1]}


def trimmed(chosen: Chosen) -> Chosen:
    """Without a shape equal masks must be equal tensors: end at the last layer that is in the set."""
    used = torch.cat(list(chosen.values()), 1).any(1).nonzero().flatten().tolist()
    return {site: rows[: max(used, default=-1) + 1] for site, rows in chosen.items()}


def shape_of(model: Any) -> ModelShape:
    """The shape of a model, plain Hugging Face's or hooked, or that shape itself."""
    if isinstance(model, ModelShape):
        return model
    if not isinstance(model, nn.Module):
        require_hooked(model, "a set of units")
    return ModelShape.of(as_hooked(model))


def _require_inside(what: str, indices: Sequence[int], count: int) -> None:
    outside = [i for i in indices if not 0 <= i < count]
    if outside:
        raise ValueError(f"{what.format(outside[0])} does not exist: there are 0 to {count - 1}")
