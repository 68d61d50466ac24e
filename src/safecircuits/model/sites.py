"""The map: (layer, unit) ↔ hook point ↔ slice of a parameter, for every architecture and both backends.

A *unit* is an MLP neuron (site ``"mlp"``) or an attention head (site ``"attn"``). Its activation is what enters
the sublayer's output projection: ``mlp.hook_post`` for a neuron, ``attn.hook_z`` for a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from safecircuits.base.arguments import indices as read_indices
from safecircuits.base.vocabulary import SITES, Site
from safecircuits.model.own_weights import has_weight, packed_map, read_weight, require_own_weight
from safecircuits.model.packed import map_sizes, require_unpacked


class HookedModel(Protocol):
    """What the library asks of a model: a ``HookedTransformer`` or a ``TransformerBridge`` has all of it.

    Examples:
        >>> def depth(model: sc.model.HookedModel) -> int:
        ...     return model.cfg.n_layers
        >>> depth(model)
        8
    """

    cfg: Any
    tokenizer: Any
    blocks: Any
    hook_dict: dict[str, Any]
    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def hooks(self, fwd_hooks: Any = ..., bwd_hooks: Any = ...) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class Bridge(HookedModel, Protocol):
    """A TransformerBridge: it wraps a Hugging Face model."""

    original_model: Any
    _tokenizer: Any


def is_bridge(model: Any) -> TypeGuard[Bridge]:
    """Whether ``model`` is a TransformerBridge (it wraps a Hugging Face model) and not a HookedTransformer."""
    return hasattr(model, "original_model")


def require_hooked(model: Any, purpose: str = "an analysis") -> None:
    """Raise a ValueError if ``model`` has no hook points: a plain Hugging Face model, or one with virtual tokens."""
    if isinstance(model, str | Path):
        raise ValueError(f"expected a model, not its name: pass load_model({str(model)!r})")
    if not hasattr(model, "cfg"):
        raise ValueError(
            f"{purpose} needs a TransformerLens model, not a {type(model).__name__}, which has no hook points: "
            "load_model(model, tokenizer=...) makes one of a Hugging Face model; a model with virtual tokens can be "
            "evaluated alone"
        )


def tokenizer_of(model: Any) -> Any:
    """The tokenizer of a hooked model; a ValueError where there is none."""
    if not hasattr(model, "greedy_decoder"):  # what brings its own decoder needs no hook points
        require_hooked(model)
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(f"this {type(model).__name__} has no tokenizer: load_model(model, tokenizer=...) gives it one")
    return model.tokenizer


def require_unprocessed(model: HookedModel) -> None:
    """Raise a ValueError if the model's weights were processed: norms folded in, writing weights centred."""
    folded = str(getattr(model.cfg, "normalization_type", None) or "").endswith("Pre")
    if folded or getattr(model, "compatibility_mode", False) or getattr(model, "_weights_processed", False):
        raise ValueError(
            "this model's weights were processed (norms folded into the matrices), which changes scores, scaling, what "
            "a freeze freezes and what is exported; load it unprocessed: from_pretrained_no_processing, or a bridge "
            "without enable_compatibility_mode() and process_weights()"
        )


@dataclass(frozen=True)
class ModelShape:
    """What two models must have in common for a result of one to be applied to the other.

    Examples:
        >>> shape = sc.ModelShape.of(model)
        >>> shape
        ModelShape(architecture='LlamaForCausalLM', n_layers=8, d_model=128, d_mlp=384, n_heads=8, n_kv_heads=4)
        >>> shape.n_units("mlp"), shape.n_units("attn")
        (384, 8)
    """

    architecture: str
    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int

    @classmethod
    def of(cls, model: HookedModel) -> ModelShape:
        """The shape of a hooked model; a ValueError for what has no hook points."""
        require_hooked(model)
        cfg = model.cfg
        return cls(
            architecture=str(getattr(cfg, "architecture", None) or cfg.original_architecture),
            n_layers=int(cfg.n_layers),
            d_model=int(cfg.d_model),
            d_mlp=_d_mlp(model),
            n_heads=int(cfg.n_heads),
            n_kv_heads=int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads),
        )

    def n_units(self, site: Site) -> int:
        """Units of ``site`` in one layer."""
        return self.d_mlp if site == "mlp" else self.n_heads

    def require_same(self, other: ModelShape, what: str) -> None:
        """Raise a ValueError that names every difference unless ``other`` has this shape.

        Args:
            other: the shape of what is at hand, "here" in the message.
            what: has this shape, which is "there".
        """
        mine, theirs = asdict(self), asdict(other)
        differs = [f"{key} {mine[key]} there, {theirs[key]} here" for key in mine if mine[key] != theirs[key]]
        if differs:
            raise ValueError(f"{what} belongs to another model: {'; '.join(differs)}")


def _d_mlp(model: HookedModel) -> int:
    """Neurons of a layer. Some bridges' configurations say 4 d_model whatever the checkpoint has; the matrix knows."""
    if is_bridge(model):
        mlp = getattr(model.blocks[0], "mlp", None)
        if (sizes := map_sizes(packed_map(mlp, "W_out"))) is not None:
            return sizes[0]
        try:
            return int(model.blocks[0].mlp.W_out.shape[-2])
        except (AttributeError, NotImplementedError):  # no such matrix, or one that nobody can read
            pass
    return int(model.cfg.d_mlp)


def resid_post(layer: int) -> str:
    """Hook name of the residual stream after block ``layer``: ``[batch pos d_model]``."""
    return f"blocks.{layer}.hook_resid_post"


def unit_hook(site: Site, layer: int) -> str:
    """Hook name of the unit activations: ``[batch pos d_mlp]`` (mlp) or ``[batch pos head d_head]`` (attn)."""
    return f"blocks.{layer}.mlp.hook_post" if site == "mlp" else f"blocks.{layer}.attn.hook_z"


def sublayer_of(model: HookedModel, layer: int, site: Site) -> Any:
    """The attention or the MLP of a layer.

    Raises:
        ValueError: for a layer without one: those of recurrent and hybrid models (Mamba, LFM2, Jamba).
    """
    found = getattr(model.blocks[layer], site, None)
    if found is None:
        what = "MLP" if site == "mlp" else "attention"
        raise ValueError(f"layer {layer} of this {ModelShape.of(model).architecture} has no {what} of its own")
    return found


def parameters_inside(model: HookedModel, layer: int, site: Site) -> set[int]:
    """Identities of the parameters of a sublayer: of OPT's MLP, which a bridge makes of the whole block, its own."""
    mine = {id(p) for p in sublayer_of(model, layer, site).parameters()}
    other = getattr(model.blocks[layer], "attn" if site == "mlp" else "mlp", None)
    theirs = set() if other is None else {id(p) for p in other.parameters()}
    return mine - theirs if theirs < mine else mine


_NEEDED: dict[Site, tuple[str, ...]] = {"mlp": ("W_in", "W_out"), "attn": ("W_Q", "W_K", "W_V", "W_O")}
"""Accessors without which a sublayer has no units."""


def has_units(model: HookedModel, site: Site, layer: int) -> bool:
    """Whether a layer has such units: an MLP (not a mixture of experts) with neurons, attention with heads."""
    sublayer = getattr(model.blocks[layer], site, None)
    return all(has_weight(sublayer, accessor) for accessor in _NEEDED[site])


def require_units(model: HookedModel, site: Site, layers: Iterable[int]) -> None:
    """Raise a ValueError for the first of ``layers`` that has no units of this site."""
    for layer in layers:
        if not has_units(model, site, layer):
            sublayer = getattr(model.blocks[layer], site, None)
            found = "nothing" if sublayer is None else f"a {type(sublayer).__name__}"
            what = "neurons" if site == "mlp" else "attention heads"
            raise ValueError(
                f"layer {layer} of this model has no {what} that could be scored, removed or frozen one by one: it has "
                f"{found} there (the experts of a mixture are no units); FreezeMask.layers freezes whole layers"
            )


def output_weight(model: HookedModel, site: Site, layer: int) -> Float[Tensor, "channel d_model"]:
    """Outgoing weights of each input channel of the sublayer's output projection, one row a channel.

    Neurons are channels (``channel = d_mlp``); a head owns ``d_head`` consecutive ones (``channel = head d_head``).
    Of a quantised projection they are the numbers that it multiplies with.

    Raises:
        ValueError: if the projection computes with more than its weight (an unmerged adapter).
    """
    require_unprocessed(model)
    require_units(model, site, (layer,))
    part, name = sublayer_of(model, layer, site), "W_out" if site == "mlp" else "W_O"
    weight = read_weight(part, name, layer, next(iter(model.parameters())), int(model.cfg.d_head))
    return weight if site == "mlp" else weight.flatten(0, 1)


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
    return {name for name, *_ in unit_tensors(model, site, layer)}


def unit_tensors(model: HookedModel, site: Site, layer: int) -> Iterator[tuple[str, nn.Parameter, Tensor, int, bool]]:
    """(parameter's name, parameter, view of it, axis that counts units, counted in KV heads?)."""
    require_unpacked(model, "a mask or an edit of units")
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
    require_unpacked(model, "a mask of layers")
    block = model.blocks[layer]
    inside = {id(p) for site in SITES for p in sublayer_of(model, layer, site).parameters()}
    norms = {id(p) for name, p in block.named_parameters() if "norm" in name.lower() or "ln" in name.split(".")[0]}
    return [name for name, p in model.named_parameters() if id(p) in inside - norms]
