"""FreezeMask: the one object that leaves an analysis and enters training. It says which units must not move.

A mask is a set of units, MLP neurons and attention heads; a frozen layer is the set of all its units. So ``|``, ``&``,
``-`` and ``~`` are plain set operations. Parameters come in only when the mask meets a model. The one subtlety is what
belongs to several units at once: the output biases of a sublayer are frozen when all of its units are, and a key/value
head (GQA) when all query heads that share it are. A union can therefore freeze more parameters than its parts do: two
masks with half of a layer's units each, together, freeze the whole layer. Norms always stay trainable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.arguments import indices as read_indices
from safecircuits.base.arguments import whole
from safecircuits.base.vocabulary import SITES, LayerRange, Site
from safecircuits.masks import file as mask_file
from safecircuits.model.parameters import (
    Masks,
    as_hooked,
    checkpoint_parameters,
    in_checkpoint_names,
    is_plain,
    live_parameters,
)
from safecircuits.model.sites import (
    ModelShape,
    layer_parameters,
    parameters_inside,
    unit_parameter_masks,
    unit_parameters,
)
from safecircuits.model.sites import is_bridge as _is_bridge

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Layers = LayerRange | Sequence[int] | Collection[int] | int
"""A LayerRange or (first, last) pair is an inclusive range; a set, frozenset or ``range`` names layers one by one."""


class Groups(Protocol):
    """What ``FreezeMask.units`` asks of a classification of units: its model's shape, and who is in a group."""

    @property
    def shape(self) -> ModelShape: ...
    def members(self, *names: str) -> Mapping[Site, Mapping[int, Sequence[int]]]: ...


@dataclass(frozen=True, eq=False, repr=False)
class FreezeMask:
    """Which units are frozen. Build one with ``layers``, ``units``, ``of_units`` or ``random_units``.

    ``mlp`` and ``attn`` are True for a frozen neuron or head. A mask made of layers alone may have no ``shape`` yet:
    its unit axis is then one long and stands for the whole sublayer; its layer axis ends at the last frozen layer.

    Examples:
        >>> mask = sc.FreezeMask.layers((3, 5), sc.ModelShape.of(model))
        >>> units = sc.FreezeMask.of_units({"mlp": {0: [1, 2]}}, sc.ModelShape.of(model))
        >>> mask.n_units("mlp"), (mask | units).n_units("mlp"), (mask & units).n_units("mlp")
        (1152, 1154, 0)
        >>> path = mask.save("mask.safetensors")
        >>> sc.FreezeMask.load(path, model) == mask
        True
    """

    mlp: Bool[Tensor, "layer neuron"]
    attn: Bool[Tensor, "layer head"]
    shape: ModelShape | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    # --- made of layers, of units, at random ---------------------------------------------------------------------

    @classmethod
    def layers(
        cls, layers: Layers, shape: ModelShape | None = None, provenance: Mapping[str, Any] | None = None
    ) -> FreezeMask:
        """Freeze all attention and MLP parameters of whole layers (0-indexed), but not their norms.

        ``(3, 5)``, ``[3, 5]`` and ``LayerRange(3, 5)`` mean layers 3, 4 and 5. ``{3, 5}`` and ``range(3, 6)`` name the
        layers themselves, and so does a single number.
        """
        if shape is not None and not isinstance(shape, ModelShape):
            raise ValueError(f"give both ends of a range as a pair, FreezeMask.layers(({layers}, {shape}))")
        chosen = _layer_indices(layers)
        rows = torch.zeros(max(chosen, default=-1) + 1, 1, dtype=torch.bool)
        rows[chosen] = True
        mask = cls(rows, rows.clone(), None, provenance or {})
        return mask if shape is None else mask.on(shape)

    @classmethod
    def units(cls, groups: Groups, *names: str, provenance: Mapping[str, Any] | None = None) -> FreezeMask:
        """Freeze the units of one or more groups, such as ``"SCU"``."""
        if not names:
            raise ValueError("name at least one group to freeze, such as FreezeMask.units(groups, 'SCU')")
        return cls.of_units(groups.members(*names), groups.shape, provenance or {"groups": list(names)})

    @classmethod
    def of_units(
        cls,
        units: Mapping[Site, Mapping[int, Iterable[int]]],
        shape: ModelShape,
        provenance: Mapping[str, Any] | None = None,
    ) -> FreezeMask:
        """Freeze units given by their indices: ``{"mlp": {3: [1, 2]}, "attn": {3: [0]}}`` (site, layer, units)."""
        tensors = {site: torch.zeros(shape.n_layers, shape.n_units(site), dtype=torch.bool) for site in SITES}
        for site, by_layer in units.items():
            if site not in SITES:
                raise ValueError(f"a site is one of {', '.join(SITES)}, not {site!r}")
            for layer, indices in by_layer.items():
                _require_inside("layer {}", [whole(layer, "a layer")], shape.n_layers)
                chosen = sorted(set(read_indices(indices, f"the {site} units of layer {layer}", least=None)))
                _require_inside(f"{site} unit {{}} of layer {layer}", chosen, shape.n_units(site))
                tensors[site][layer, chosen] = True
        return cls(tensors["mlp"], tensors["attn"], shape, provenance or {})

    @classmethod
    def random_units(cls, like: FreezeMask, shape: ModelShape | None = None, seed: int = 0) -> FreezeMask:
        """A size-matched control: as many units of each site as ``like`` has, drawn over all layers."""
        shape = shape or like.shape
        if shape is None:
            raise ValueError("a random control needs the model's shape: pass shape=ModelShape.of(model)")
        like = like.on(shape)
        generator = torch.Generator().manual_seed(whole(seed, "seed", 0))
        drawn = {}
        for site in SITES:
            mask = like._at(site)
            chosen = torch.randperm(mask.numel(), generator=generator)[: int(mask.sum())]
            drawn[site] = torch.zeros_like(mask).flatten().index_fill(0, chosen, True).reshape(mask.shape)
        return cls(drawn["mlp"], drawn["attn"], shape, {"random_like": dict(like.provenance), "seed": seed})

    # --- algebra -------------------------------------------------------------------------------------------------

    def __or__(self, other: FreezeMask) -> FreezeMask:
        return self._combined(other, "|", torch.logical_or)

    def __and__(self, other: FreezeMask) -> FreezeMask:
        return self._combined(other, "&", torch.logical_and)

    def __sub__(self, other: FreezeMask) -> FreezeMask:
        return self._combined(other, "-", lambda a, b: a & ~b)

    def __invert__(self) -> FreezeMask:
        if self.shape is None:
            raise ValueError("the complement needs the model's shape: use ~mask.on(ModelShape.of(model))")
        return FreezeMask(~self.mlp, ~self.attn, self.shape, {"op": "~", "of": [dict(self.provenance)]})

    def restrict(self, layers: Layers | None = None, sites: Iterable[Site] | Site | None = None) -> FreezeMask:
        """Only what lies in these layers (read as in ``FreezeMask.layers``) and at these sites."""
        kept = {sites} if isinstance(sites, str) else set(SITES if sites is None else sites)
        if not kept <= set(SITES):
            raise ValueError(f"a site is one of {', '.join(SITES)}, not {sorted(kept - set(SITES))[0]!r}")
        rows = torch.ones(len(self.mlp), 1, dtype=torch.bool)
        if layers is not None:
            rows.zero_()[[layer for layer in _layer_indices(layers) if layer < len(rows)]] = True
        mlp, attn = (self._at(site) & rows & (site in kept) for site in SITES)
        return _trimmed(replace(self, mlp=mlp, attn=attn))

    def on(self, shape: ModelShape) -> FreezeMask:
        """The same mask for a model of this shape; a ValueError if it belongs to another or reaches beyond it."""
        if self.shape is not None:
            self.shape.require_same(shape, "the freeze mask")
            return self
        if len(self.mlp) > shape.n_layers:
            raise ValueError(
                f"the freeze mask reaches layer {len(self.mlp) - 1}, "
                f"but the model's layers are 0 to {shape.n_layers - 1}"
            )
        full = {}
        for site in SITES:
            full[site] = torch.zeros(shape.n_layers, shape.n_units(site), dtype=torch.bool)
            full[site][: len(self.mlp)] = self._at(site)
        return replace(self, mlp=full["mlp"], attn=full["attn"], shape=shape)

    def __eq__(self, other: object) -> bool:
        """Equal masks freeze the same units of the same shape; where they come from does not count."""
        if not isinstance(other, FreezeMask):
            return NotImplemented
        return self.shape == other.shape and torch.equal(self.mlp, other.mlp) and torch.equal(self.attn, other.attn)

    def __hash__(self) -> int:
        return hash((self.shape, self.mlp.numpy().tobytes(), self.attn.numpy().tobytes()))

    def __bool__(self) -> bool:
        """Whether the mask freezes anything."""
        return bool(self.mlp.any() or self.attn.any())

    # --- what is in it -------------------------------------------------------------------------------------------

    @property
    def whole_layers(self) -> tuple[int, ...]:
        """The layers of which every unit is frozen, and with them all attention and MLP parameters."""
        return tuple((self.mlp.all(1) & self.attn.all(1)).nonzero().flatten().tolist())

    def members(self, site: Site) -> dict[int, tuple[int, ...]]:
        """The frozen units of a site by layer. A mask without a shape cannot list them."""
        if self.shape is None:
            raise ValueError("a mask without a shape has no unit indices: use mask.on(ModelShape.of(model))")
        rows = enumerate(self._at(site))
        return {layer: tuple(row.nonzero().flatten().tolist()) for layer, row in rows if row.any()}

    def by_site(self) -> dict[Site, dict[int, tuple[int, ...]]]:
        """The frozen units by site and layer, as ``ablated`` and ``ablate_units`` take them."""
        return {site: self.members(site) for site in SITES}

    def n_units(self, site: Site) -> int:
        """How many units of a site are frozen."""
        return sum(len(units) for units in self.members(site).values())

    def share_of_units(self) -> float:
        """The frozen share of all units, neurons and heads counted alike."""
        if self.shape is None:
            raise ValueError("a share needs the model's shape: use mask.on(ModelShape.of(model))")
        return int(self.mlp.sum() + self.attn.sum()) / (self.mlp.numel() + self.attn.numel())

    def share_of_parameters(self, model: Any) -> float:
        """The frozen share of all entries of the model's parameters, embeddings included."""
        total = sum(p.numel() for p in checkpoint_parameters(model).values())
        return sum(int(mask.sum()) for mask in self.parameter_masks(model).values()) / total

    def summary(self, model: Any = None) -> str:
        """What is frozen, in a few lines; with a model also the share of its parameters."""
        mask = self if model is None else self.check(model)
        lines = [f"whole layers: {_ranges(mask.whole_layers) or 'none'}"]
        if mask.shape is not None:
            for site, unit in zip(SITES, ("MLP neurons", "attention heads"), strict=True):
                layers = _ranges(sorted(mask.members(site))) or "none"
                lines.append(f"{unit}: {mask.n_units(site)} of {mask._at(site).numel()} (layers: {layers})")
            lines.append(f"share of units: {100 * mask.share_of_units():.2f} %")
        if model is not None:
            lines.append(f"share of parameters: {100 * mask.share_of_parameters(model):.2f} %")
        return "\n".join(lines)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of what is frozen; where the mask comes from does not count."""
        return hashlib.sha256(self.mlp.numpy().tobytes() + self.attn.numpy().tobytes()).hexdigest()[:16]

    def record(self) -> dict[str, list[float]]:
        """The frozen share of each layer's units, by site."""
        return {site: self._at(site).float().mean(1).tolist() for site in SITES}

    def plot(self, ax: Axes | None = None) -> Axes:
        """The frozen share of each layer's MLP neurons and attention heads; a mask of layers alone shows its layers."""
        from safecircuits.plots.masks import plot_mask

        return plot_mask(self, ax=ax)

    def __repr__(self) -> str:
        return f"FreezeMask({'; '.join(self.summary().splitlines())})"

    def _repr_html_(self) -> str:
        from safecircuits.results.notebook import facts_table

        return facts_table("FreezeMask", self.summary().splitlines())

    # --- meeting a model -----------------------------------------------------------------------------------------

    def check(self, model: Any) -> FreezeMask:
        """The mask in this model's shape, or a ValueError that says how they differ."""
        return self.on(ModelShape.of(as_hooked(model)))

    def parameter_masks(self, model: Any) -> Masks:
        """Boolean tensors, True where frozen, by parameter name; parameters with no frozen entry are left out.

        Names are Hugging Face's for a plain Hugging Face model and for a bridge, and its own for a HookedTransformer.

        Raises:
            ValueError: for another model's mask, one that comes to no parameter of this model, and units in a layer
                that has none (a mixture of experts) or whose matrices they do not make up.
        """
        hooked, stored = as_hooked(model), checkpoint_parameters(model)
        masks = self.hooked_masks(hooked)
        if is_plain(model) or _is_bridge(model):
            found = in_checkpoint_names(hooked, masks, stored)
        else:
            found = {name: mask for name, mask in masks.items() if name in stored}
        if self and not any(mask.any() for mask in found.values()):
            raise ValueError("the freeze mask names units, but not one parameter of this model belongs to them")
        return found

    def hooked_masks(self, model: Any) -> Masks:
        """The same by a hooked model's own names, which on a bridge include both fused and split parameters."""
        mask, masks = self.check(model), {}
        own = dict(model.named_parameters())
        live = live_parameters(model) if any(mask._in_part()) else {}
        for layer in range(len(mask.mlp)):
            for site in SITES:
                frozen = mask._at(site)[layer]
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

    # --- file ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the mask as safetensors with a JSON header; an existing file is replaced only by a complete one."""
        return mask_file.save(mask_file.StoredMask(self.mlp, self.attn, self.shape, self.provenance), path)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> FreezeMask:
        """Read a mask and, when a model is given, check that it belongs to it; a ValueError for anything else."""
        mask = cls(*mask_file.load(path))
        return mask if model is None else mask.check(model)

    # -------------------------------------------------------------------------------------------------------------

    def _at(self, site: Site) -> Tensor:
        return self.mlp if site == "mlp" else self.attn

    def _in_part(self) -> Iterator[bool]:
        """Of each layer and site whether some of its units are frozen, but not all."""
        return (bool(row.any() and not row.all()) for site in SITES for row in self._at(site))

    def _combined(self, other: FreezeMask, op: str, rule: Callable[[Tensor, Tensor], Tensor]) -> FreezeMask:
        shape = self.shape or other.shape
        if self.shape is not None and other.shape is not None:
            other.shape.require_same(self.shape, "the second freeze mask")
        if shape is not None:
            a, b = self.on(shape), other.on(shape)
        else:
            rows = max(len(self.mlp), len(other.mlp))
            a, b = _padded(self, rows), _padded(other, rows)
        origin = {"op": op, "of": [dict(self.provenance), dict(other.provenance)]}
        return _trimmed(FreezeMask(rule(a.mlp, b.mlp), rule(a.attn, b.attn), shape, origin))


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


def _layer_indices(layers: Layers) -> list[int]:
    """See ``FreezeMask.layers``."""
    if hasattr(layers, "__index__") and not getattr(layers, "ndim", 0):  # numpy's numbers and torch's, too
        layers = {whole(layers, "a layer")}
    if isinstance(layers, set | frozenset | range):
        chosen = sorted(set(read_indices(layers, "layers", least=None)))
        if chosen and chosen[0] < 0:
            raise ValueError(f"layers are counted from 0; got {chosen[0]}")
        return chosen
    return list(LayerRange.of(layers).indices)  # type: ignore[arg-type]  # what is left is a range or a pair


def _require_inside(what: str, indices: Sequence[int], count: int) -> None:
    outside = [i for i in indices if not 0 <= i < count]
    if outside:
        raise ValueError(f"{what.format(outside[0])} does not exist: there are 0 to {count - 1}")


def _padded(mask: FreezeMask, rows: int) -> FreezeMask:
    extra = torch.zeros(rows - len(mask.mlp), 1, dtype=torch.bool)
    return replace(mask, mlp=torch.cat([mask.mlp, extra]), attn=torch.cat([mask.attn, extra]))


def _trimmed(mask: FreezeMask) -> FreezeMask:
    """Without a shape equal masks must be equal tensors: end at the last layer that is frozen."""
    if mask.shape is not None:
        return mask
    used = (mask.mlp | mask.attn).flatten().nonzero().flatten()
    rows = int(used[-1]) + 1 if len(used) else 0
    return replace(mask, mlp=mask.mlp[:rows], attn=mask.attn[:rows])


def _ranges(layers: Sequence[int]) -> str:
    """Layer numbers with runs written as first-last: ``0, 3-5``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
