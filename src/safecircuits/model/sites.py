"""The map: (layer, unit) ↔ hook point ↔ slice of a parameter, for every architecture and both backends.

A *unit* is an MLP neuron (site ``"mlp"``) or an attention head (site ``"attn"``). Its activation is what enters
the sublayer's output projection: ``mlp.hook_post`` for a neuron, ``attn.hook_z`` for a head. A layer that is a mixture
of experts has neurons of experts (``"expert"``) and of the shared expert (``"shared"``) in place of an MLP's; the rows
of its router (``"router"``), one an expert, can be frozen, but have no activation of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from jaxtyping import Float
from torch import Tensor, nn

from safecircuits.base.vocabulary import ALL_SITES, MIXTURE_SITES, Site
from safecircuits.model.mixtures import NEURONS, SHARED, Mixture, MixtureShape, look, mixture_shape
from safecircuits.model.offload import present
from safecircuits.model.own_weights import has_weight, map_behind, read_weight
from safecircuits.model.packed import applied_matrix, is_packed, map_sizes


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
    """A model's architecture and sizes; results and masks of one model apply to another only if these agree.

    Examples:
        >>> shape = sc.ModelShape.of(model)
        >>> shape.architecture, shape.n_layers, shape.d_model, shape.n_kv_heads
        ('LlamaForCausalLM', 8, 128, 4)
        >>> shape.n_units("mlp"), shape.n_units("attn")
        (384, 8)
    """

    architecture: str
    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    mixture: MixtureShape | None = None
    """Of a model whose layers, or some of them, are mixtures of experts."""

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
            mixture=mixture_shape(look(getattr(block, "mlp", None)) for block in model.blocks),
        )

    def layers_with(self, site: Site) -> tuple[int, ...]:
        """The layers that have units of ``site``: all, but for a model with mixtures of experts among its layers."""
        every, mixtures = tuple(range(self.n_layers)), () if self.mixture is None else self.mixture.layers
        if site in MIXTURE_SITES:
            return mixtures if self.mixture is not None and self.mixture.n_units(site) else ()
        return every if site == "attn" else tuple(layer for layer in every if layer not in mixtures)

    def n_units(self, site: Site) -> int:
        """Units of ``site`` in one layer that has some; 0 if none has."""
        if not self.layers_with(site):
            return 0
        if site in MIXTURE_SITES and self.mixture is not None:
            return self.mixture.n_units(site)
        return self.d_mlp if site == "mlp" else self.n_heads

    @property
    def total_units(self) -> int:
        """Units of all sites and layers."""
        return sum(len(self.layers_with(site)) * self.n_units(site) for site in ALL_SITES)

    def require_same(self, other: ModelShape, what: str) -> None:
        """Raise a ValueError that names every difference unless ``other`` has this shape.

        Args:
            other: the shape of what is at hand, "here" in the message.
            what: has this shape, which is "there".
        """
        mine, theirs = asdict(self), asdict(other)
        if (self.mixture is None) != (other.mixture is None):
            of = ["dense" if one is None else "a mixture of experts" for one in (self.mixture, other.mixture)]
            raise ValueError(f"{what} belongs to another model: it is of one that is {of[0]}, and this one is {of[1]}")
        differs = [f"{key} {mine[key]} there, {theirs[key]} here" for key in mine if mine[key] != theirs[key]]
        if differs:
            raise ValueError(f"{what} belongs to another model: {'; '.join(differs)}")


def _d_mlp(model: HookedModel) -> int:
    """Neurons of a layer. Some bridges' configurations say 4 d_model whatever the checkpoint has; the matrix knows."""
    for block in model.blocks if is_bridge(model) else ():
        mlp = getattr(block, "mlp", None)
        if (sizes := map_sizes(map_behind(mlp, "W_out"))) is not None:
            return sizes[0]
        try:
            return int(block.mlp.W_out.shape[-2])
        except (AttributeError, NotImplementedError):  # a mixture of experts, no such matrix, or one nobody can read
            pass
    return int(model.cfg.d_mlp)


def resid_post(layer: int) -> str:
    """Hook name of the residual stream after block ``layer``: ``[batch pos d_model]``."""
    return f"blocks.{layer}.hook_resid_post"


def unit_hook(site: Site, layer: int) -> str:
    """Hook name of the unit activations: ``[batch pos d_mlp]`` (mlp, shared) or ``[batch pos head d_head]`` (attn).

    Those of experts are ``[batch pos top_k d_expert]``, of the experts that ``hook_expert_index`` names beside them.
    """
    names = {"mlp": "mlp.hook_post", "attn": "attn.hook_z", "expert": f"mlp.{NEURONS}", "shared": f"mlp.{SHARED}"}
    return f"blocks.{layer}.{names[site]}"


def mixture_at(model: HookedModel, layer: int) -> Mixture | None:
    """The parts of a layer that is a mixture of experts whose units can be named."""
    return look(getattr(model.blocks[layer], "mlp", None))[0]


def sublayer_of(model: HookedModel, layer: int, site: Site) -> Any:
    """The attention or the MLP of a layer.

    Raises:
        ValueError: for a layer without one: those of recurrent and hybrid models (Mamba, LFM2, Jamba).
    """
    where = "attn" if site == "attn" else "mlp"
    found = getattr(model.blocks[layer], where, None)
    if found is None:
        what = "MLP" if where == "mlp" else "attention"
        raise ValueError(f"layer {layer} of this {ModelShape.of(model).architecture} has no {what} of its own")
    return found


_NAMES: dict[Site, str] = {
    "mlp": "neurons",
    "attn": "attention heads",
    "expert": "experts' neurons",
    "shared": "neurons of a shared expert",
    "router": "router",
}
_NEEDED: dict[Site, tuple[str, ...]] = {"mlp": ("W_in", "W_out"), "attn": ("W_Q", "W_K", "W_V", "W_O")}
"""Accessors without which a sublayer has no units."""


def has_units(model: HookedModel, site: Site, layer: int) -> bool:
    """Whether a layer has such units: an MLP with neurons, attention with heads, experts whose neurons can be named."""
    if site in MIXTURE_SITES:
        mixture = mixture_at(model, layer)
        return mixture is not None and (site != "shared" or mixture.shared is not None)
    sublayer = getattr(model.blocks[layer], site, None)
    return all(has_weight(sublayer, accessor) for accessor in _NEEDED[site])


def require_units(model: HookedModel, site: Site, layers: Iterable[int]) -> None:
    """Raise a ValueError for the first of ``layers`` that has no units of this site."""
    for layer in layers:
        if not has_units(model, site, layer):
            sublayer = getattr(model.blocks[layer], "attn" if site == "attn" else "mlp", None)
            found = "nothing" if sublayer is None else f"a {type(sublayer).__name__}"
            mixture, reason = (None, "") if site == "attn" else look(sublayer)
            more = "" if mixture is None else "; the neurons of its experts are the site 'expert'"
            more = f", and {reason}" if reason else more
            raise ValueError(
                f"layer {layer} of this model has no {_NAMES[site]} that could be scored, removed or frozen one by "
                f"one: it has {found} there{more}; FreezeMask.layers freezes whole layers"
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
    if (mixture := mixture_at(model, layer)) is not None and site != "attn":
        with present(model, (layer,)):
            return _mixture_output(mixture, site, next(iter(model.parameters())))
    part, name = sublayer_of(model, layer, site), "W_out" if site == "mlp" else "W_O"
    with present(model, (layer,)):
        weight = read_weight(part, name, layer, next(iter(model.parameters())), int(model.cfg.d_head))
    return weight if site == "mlp" else weight.flatten(0, 1)


def _mixture_output(mixture: Mixture, site: Site, like: Tensor) -> Float[Tensor, "channel d_model"]:
    if site == "expert":
        return mixture.down().flatten(0, 1)
    if site != "shared" or mixture.shared is None:
        raise ValueError("routers have no outgoing weights: they can be frozen, not scored or removed")
    out = mixture.shared[2]
    return applied_matrix(out, like.dtype, like.device) if is_packed(out) else out.weight.detach().T
