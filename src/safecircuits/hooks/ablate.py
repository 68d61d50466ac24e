"""Remove units from a running model: their activations are replaced before they enter the output projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked, whole
from safecircuits.base.arguments import indices as read_indices
from safecircuits.base.vocabulary import SITES, Site
from safecircuits.hooks.place import Places, placed
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.sites import HookedModel, ModelShape, require_units, unit_hook

Units = Mapping[Site, Mapping[int, tuple[int, ...]]]
"""Unit indices by site and layer."""

UnitValues = Mapping[Site, Mapping[int, Float[Tensor, "..."]]]
"""A value a unit by site and layer: ``[d_mlp]`` for neurons, ``[head d_head]`` for heads."""


@checked
@contextmanager
def ablated(model: HookedModel, units: Units, *, to: UnitValues | None = None, spare: int = 0) -> Iterator[None]:
    """Inside the block the given units are removed: their activation is 0, or the value that ``to`` gives for them.

    Zeroing equals removing the unit's rows and columns from the weights, unless a norm takes in the queries or keys of
    all heads (OLMo-2): there the rows count for the other heads' norm, and stay.

    ``to`` is usually the mean over a data set (``UnitScores.mean``), which removes what the unit says about the prompt
    but not its constant part. That is what FLAP's bias compensation does: what the means of the removed units write
    through the output projection is the bias that it adds to the pruned layer (``prune_units(..., compensate=means)``).

    Args:
        units: indices by site and layer, ``{"mlp": {3: [0, 7]}, "attn": {3: [1]}}``, as ``UnitGroups.members``, ``top``
            and ``FreezeMask.by_site`` give them.
        spare: how many first positions of each prompt the units are left as they are at: what every prompt begins with
            (``UnitScores.beginning``), where a unit says nothing about the prompt. Some units make the attention sink
            there, and without it a model breaks whatever else they do. Removal from the weights spares nothing.

    Raises:
        ValueError: for a unit outside the model, a layer without such units, one that ``to`` has no value for, and for
            a ``spare`` that is no number of positions.
        RuntimeError: with ``spare``, in a pass that does not tell which position each token has.

    Examples:
        >>> scores = sc.score_units(model, malicious)
        >>> with sc.ablated(model, scores.top(24), to=scores.mean, spare=scores.beginning):
        ...     measured = sc.evaluate(model, malicious=malicious)
    """
    hooks: dict[str, HookFn] = {}
    for site, by_layer in checked_units(units, ModelShape.of(model)).items():
        require_units(model, site, by_layer)
        for layer, indices in by_layer.items():
            try:
                fill = None if to is None else to[site][layer]
            except (KeyError, IndexError):
                raise ValueError(f"to= has no values for the {site} units of layer {layer}") from None
            hooks[unit_hook(site, layer)] = _replace(site, torch.tensor(indices), fill)
    if not spare:
        with attached(model, hooks, per_token=True):
            yield
        return
    with placed(model) as places:
        sparing = {name: _sparing(fn, places, spare) for name, fn in hooks.items()}
        with attached(model, sparing, per_token=True):
            yield


def _sparing(fn: HookFn, places: Places, n: int) -> HookFn:
    """``fn`` from each prompt's ``n``-th position on."""

    def run(activation: Tensor) -> Tensor:
        changed = fn(activation)
        assert changed is not None
        first = places.of(activation) < n
        return torch.where(first.reshape(*first.shape, *(1,) * (activation.ndim - 2)), activation, changed)

    return run


def checked_units(units: Units, shape: ModelShape) -> dict[Site, dict[int, tuple[int, ...]]]:
    """``units`` as Python's whole numbers, in order and each once; layers without any are left out.

    Raises:
        ValueError: for anything but units, by site and layer, of a model of this shape.
    """
    if not isinstance(units, Mapping):
        raise ValueError(f"{_EXPECTED}; not a {type(units).__name__}")
    checked: dict[Site, dict[int, tuple[int, ...]]] = {}
    for site, by_layer in units.items():
        if site not in SITES:
            raise ValueError(f"a site is one of {', '.join(SITES)}, not {site!r}: {_EXPECTED}")
        if not isinstance(by_layer, Mapping):
            raise ValueError(f"{_EXPECTED}; the {site} units are a {type(by_layer).__name__}")
        checked[site] = {}
        for layer, given in by_layer.items():
            at = whole(layer, "a layer")
            if not 0 <= at < shape.n_layers:
                raise ValueError(f"layer {layer!r} is outside the model, whose layers are 0 to {shape.n_layers - 1}")
            indices = tuple(sorted(set(read_indices(given, f"the {site} units of layer {layer}", least=None))))
            last = shape.n_units(site) - 1
            if indices and not 0 <= indices[0] <= indices[-1] <= last:
                raise ValueError(f"{site} units {indices[0]}..{indices[-1]} of layer {layer} are outside 0..{last}")
            if indices:
                checked[site][at] = indices
    return checked


_EXPECTED = "units are given by site and layer, such as {'mlp': {3: [0, 7]}, 'attn': {3: [1]}}"


def _replace(site: Site, indices: Tensor, fill: Tensor | None) -> HookFn:
    dim = -1 if site == "mlp" else -2  # [batch pos d_mlp] or [batch pos head d_head]

    def run(activation: Tensor) -> Tensor:
        at = indices.to(activation.device)
        if fill is None:
            return activation.index_fill(dim, at, 0.0)
        out = activation.clone()
        values = fill.to(activation)[at]
        if site == "mlp":
            out[..., at] = values
        else:
            out[..., at, :] = values
        return out

    return run
