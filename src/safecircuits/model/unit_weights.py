"""Slices of parameters: which entries of which belong to units, and which parameters to a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from safecircuits.base.arguments import indices as read_indices
from safecircuits.base.vocabulary import MIXTURE_SITES, SITES, Site
from safecircuits.model.mixture_masks import mixture_masks
from safecircuits.model.offload import require_in_place
from safecircuits.model.own_weights import require_own_weight
from safecircuits.model.sites import (
    HookedModel,
    ModelShape,
    is_bridge,
    mixture_at,
    require_units,
    require_unprocessed,
    sublayer_of,
)


def parameters_inside(model: HookedModel, layer: int, site: Site) -> set[int]:
    """Identities of the parameters of a sublayer: of OPT's MLP, which a bridge makes of the whole block, its own."""
    if site in MIXTURE_SITES:
        mixture = mixture_at(model, layer)
        return set() if mixture is None else {id(p) for p in mixture.parameters(site)}
    mine = {id(p) for p in sublayer_of(model, layer, site).parameters()}
    other = getattr(model.blocks[layer], "attn" if site == "mlp" else "mlp", None)
    theirs = set() if other is None else {id(p) for p in other.parameters()}
    return mine - theirs if theirs < mine else mine


def _unit_accessors(model: HookedModel, site: Site) -> Iterable[tuple[str, int, bool]]:
    """(accessor, axis that counts units, counted in KV heads?) of every tensor that belongs to a unit."""
    if site == "mlp":
        return [
            ("W_in", 1, False),
            ("W_gate", 1, False),
            ("b_in", 0, False),
            ("b_gate", 0, False),
            ("W_out", 0, False),
        ]
    # Under GQA a HookedTransformer's W_K is an expanded copy; _W_K is the parameter.
    kv = "" if is_bridge(model) or model.cfg.n_key_value_heads is None else "_"
    query = [("W_Q", 0, False), ("b_Q", 0, False), ("W_O", 0, False)]
    return query + [(f"{kv}{name}", 0, True) for name in ("W_K", "b_K", "W_V", "b_V")]


def unit_parameters(model: HookedModel, site: Site, layer: int) -> set[str]:
    """Names in ``named_parameters()`` of all that belongs to the units of one layer."""
    require_units(model, site, (layer,))
    if site in MIXTURE_SITES:
        inside = parameters_inside(model, layer, site)
        return {name for name, p in model.named_parameters() if id(p) in inside}
    return {name for name, *_ in unit_tensors(model, site, layer)}


def unit_tensors(model: HookedModel, site: Site, layer: int) -> Iterator[tuple[str, nn.Parameter, Tensor, int, bool]]:
    """(parameter's name, parameter, view of it, axis that counts units, counted in KV heads?)."""
    require_in_place(model, "a mask or an edit of units")
    sublayer = sublayer_of(model, layer, site)
    named = dict(model.named_parameters())
    names = {id(p): name for name, p in named.items()}
    for accessor, axis, counts_kv in _unit_accessors(model, site):
        view = getattr(sublayer, accessor, None)
        if view is None:
            continue  # a bias or a gate; ``require_units`` has looked for what must be there
        require_own_weight(sublayer, accessor, view, layer)
        parameter = view if id(view) in names else view._base
        if parameter is None or id(parameter) not in names:
            if not view.requires_grad and not torch.any(view != 0):
                continue  # a zero stand-in for a bias that the model does not have
            raise ValueError(f"{accessor} of layer {layer} is a copy of its parameter, so it cannot be masked")
        name = names[id(parameter)]
        yield name, named[name], view, axis, counts_kv


def unit_parameter_masks(
    model: HookedModel, site: Site, layer: int, units: Iterable[int]
) -> dict[str, Bool[Tensor, "..."]]:
    """Which entries of which parameters belong to ``units``: boolean masks by name in ``named_parameters()``.

    A neuron owns its rows of the input and gate matrices, their biases, and its column of the output matrix. A head
    owns its slices of Q (with bias) and O. A key/value head shared by several query heads (GQA) belongs to the
    selection only when all of its query heads do. The output biases belong to the sublayer, not to a unit.

    Raises:
        ValueError: if a unit lies outside the layer, or the model's weights were processed.
    """
    require_unprocessed(model)
    require_units(model, site, (layer,))
    shape = ModelShape.of(model)
    chosen = sorted(set(read_indices(units, f"the {site} units", least=None)))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < shape.n_units(site):
        raise ValueError(f"{site} units {chosen[0]}..{chosen[-1]} are outside 0..{shape.n_units(site) - 1}")
    if site in MIXTURE_SITES:
        require_in_place(model, "a mask or an edit of units")
        mixture, names = mixture_at(model, layer), {id(p): name for name, p in model.named_parameters()}
        assert mixture is not None
        return {names[id(p)]: mask for p, mask in mixture_masks(mixture, site, chosen) if mask.any()}
    group = shape.n_heads // shape.n_kv_heads
    kv_heads = [h for h in range(shape.n_kv_heads) if set(range(h * group, (h + 1) * group)) <= set(chosen)]
    masks: dict[str, Tensor] = {}
    for name, parameter, view, axis, counts_kv in unit_tensors(model, site, layer):
        owned = kv_heads if counts_kv else chosen
        if not owned:
            continue
        # A parameter may itself be a strided part of a fused one (Phi-3, GPT-2): its mask gets the same strides.
        empty = torch.empty_strided(parameter.shape, parameter.stride(), dtype=torch.bool).zero_()
        mask = masks.setdefault(name, empty)
        # The accessor is a strided view of the parameter; the same strides laid over the mask find the unit's slice.
        offset = view.storage_offset() - parameter.storage_offset()
        window = torch.as_strided(mask, view.shape, view.stride(), offset)
        window.index_fill_(axis, torch.tensor(owned), True)
    return masks


def layer_parameters(model: HookedModel, layer: int) -> list[str]:
    """Names in ``named_parameters()`` of the attention and MLP parameters of a layer; its norms are not among them."""
    require_in_place(model, "a mask of layers")
    block = model.blocks[layer]
    inside = {id(p) for site in SITES for p in sublayer_of(model, layer, site).parameters()}
    norms = {id(p) for name, p in block.named_parameters() if "norm" in name.lower() or "ln" in name.split(".")[0]}
    return [name for name, p in model.named_parameters() if id(p) in inside - norms]
