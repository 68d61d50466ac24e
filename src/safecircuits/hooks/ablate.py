"""Remove units from a running model: their activations are replaced before they enter the output projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import ALL_SITES, MIXTURE_SITES, Site
from safecircuits.hooks.place import Places, placed
from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.expert_points import Routing, require_expert_points
from safecircuits.model.sites import HookedModel, require_hooked, require_units, unit_hook

UnitValues = Mapping[Site, Mapping[int, Float[Tensor, "..."]]]
"""A value a unit by site and layer: ``[d_mlp]`` for neurons, ``[head d_head]`` for heads, ``[expert_neuron]`` or
``[expert d_expert]`` for neurons of experts."""


@checked
@contextmanager
def ablated(model: HookedModel, units: FreezeMask, *, to: UnitValues | None = None, spare: int = 0) -> Iterator[None]:
    """Ablate units inside a ``with`` block: their activation is set to 0, or to the value in ``to``.

    A neuron of an expert is removed for the tokens that are routed to its expert; the others do not go through it, and
    where tokens are routed to stays as it is. A router's rows have no activation, and are refused.

    Zeroing equals removing the unit's rows and columns from the weights, unless a norm takes in the queries or keys of
    all heads (OLMo-2): there the rows count for the other heads' norm, and stay.

    ``to`` is usually the mean over a data set (``UnitScores.mean``), which removes what the unit says about the prompt
    but not its constant part. That is what FLAP's bias compensation does: what the means of the removed units write
    through the output projection is the bias that it adds to the pruned layer (``prune_units(..., compensate=means)``).

    Args:
        units: those of a group (``groups["SCU"]``), of the highest scores (``scores.top(24)``), or by their indices
            (``FreezeMask.of_units``).
        spare: how many first positions of each prompt the units are left as they are at: what every prompt begins with
            (``UnitScores.beginning``), where a unit says nothing about the prompt. Some units make the attention sink
            there, and without it a model breaks whatever else they do. Removal from the weights spares nothing.

    Raises:
        ValueError: for another model's units, a layer without such units, one that ``to`` has no value for, and for a
            ``spare`` that is no number of positions.
        RuntimeError: with ``spare``, in a pass that does not tell which position each token has.

    Examples:
        >>> scores = sc.score_units(model, malicious)
        >>> with sc.ablated(model, scores.top(24), to=scores.mean, spare=scores.beginning):
        ...     measured = sc.evaluate(model, malicious=malicious)
    """
    hooks: dict[str, HookFn] = {}
    require_hooked(model)
    units = units_of(model, units)
    if units.at("router").any():
        raise ValueError(
            "the rows of a router cannot be removed: they have no activation, they say where tokens go; remove the "
            "neurons of experts alone: units.restrict(sites=('expert', 'shared', 'mlp', 'attn'))"
        )
    for site in ALL_SITES:
        by_layer = units.members(site)
        require_units(model, site, by_layer)
        for layer, indices in by_layer.items():
            try:
                fill = None if to is None else to[site][layer]
            except (KeyError, IndexError):
                raise ValueError(f"to= has no values for the {site} units of layer {layer}") from None
            if site in MIXTURE_SITES:
                require_expert_points(model, layer)
            at = torch.tensor(indices)
            expert = site == "expert"
            removal = _replace_in_experts(model, layer, at, fill) if expert else _replace(site, at, fill)
            hooks[unit_hook(site, layer)] = removal
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


def _replace_in_experts(model: HookedModel, layer: int, units: Tensor, fill: Tensor | None) -> HookFn:
    """For neurons of experts, numbered expert after expert."""
    routing = Routing(model, layer)
    size = (routing.mixture.n_experts, routing.mixture.d_expert)
    removed = torch.zeros(size, dtype=torch.bool)
    removed.view(-1)[units] = True
    values = torch.zeros(size) if fill is None else fill.reshape(size)

    def run(activation: Tensor) -> Tensor:
        at = routing.index
        return torch.where(removed.to(at.device)[at], values.to(activation)[at], activation)

    return run


def _replace(site: Site, indices: Tensor, fill: Tensor | None) -> HookFn:
    dim = -2 if site == "attn" else -1  # [batch pos head d_head] or [batch pos d_mlp]

    def run(activation: Tensor) -> Tensor:
        at = indices.to(activation.device)
        if fill is None:
            return activation.index_fill(dim, at, 0.0)
        out = activation.clone()
        values = fill.to(activation)[at]
        if site == "attn":
            out[..., at, :] = values
        else:
            out[..., at] = values
        return out

    return run
