"""FreezeMask, a set of units: what an analysis finds, what is removed, and what training must not move.

A mask is a set of MLP neurons and attention heads (in a mixture of experts of its experts' neurons, its shared expert's
and the rows of its router); a frozen layer is the set of all its units. So ``|``, ``&``, ``-``
and ``~`` are plain set operations. Parameters come in only when the mask meets a model. The one subtlety is what
belongs to several units at once: the output biases of a sublayer are frozen when all of its units are, and a key/value
head (GQA) when all query heads that share it are. A union can therefore freeze more parameters than its parts do: two
masks with half of a layer's units each, together, freeze the whole layer. Norms always stay trainable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.arguments import whole
from safecircuits.base.vocabulary import ALL_SITES, MIXTURE_SITES, Site
from safecircuits.masks import file as mask_file
from safecircuits.masks.describing import as_many, described, whole_layers
from safecircuits.masks.parameters import hooked_masks, masks_on
from safecircuits.masks.reading import (
    Chosen,
    Indices,
    Layers,
    chosen_of,
    expanded,
    layer_indices,
    no_units,
    of_layers,
    present,
    require_chosen,
    shape_of,
    trimmed,
    unsaid,
)
from safecircuits.model.parameters import Masks, checkpoint_parameters
from safecircuits.model.sites import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class FreezeMask:
    """A set of units or layers, to freeze, ablate or prune: ``groups["SCU"]``, or by hand ``layers`` or ``of_units``.

    ``mlp`` and ``attn`` are True for a neuron or head that is in the set. A mask made of layers alone may have no
    ``shape`` yet: its unit axis is then one long and stands for the whole sublayer; its layer axis ends at the last
    layer.

    Raises:
        ValueError: for tensors that are not boolean, or not of the shape's layers and units.

    Examples:
        >>> units = sc.FreezeMask.of_units({"mlp": {5: [3, 7]}}, model)
        >>> block = sc.FreezeMask.layers((3, 5), model)
        >>> block.n_units("mlp"), (block | units).n_units("mlp"), (block - units).whole_layers
        (1152, 1152, (3, 4))
        >>> path = block.save("mask.safetensors")
        >>> sc.FreezeMask.load(path, model) == block
        True
    """

    mlp: Bool[Tensor, "layer neuron"]
    attn: Bool[Tensor, "layer head"]
    shape: ModelShape | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    mixture: Chosen = field(default_factory=dict)
    """The same of the sites that mixtures of experts have in place of an MLP; without a shape what the MLP is."""

    def __post_init__(self) -> None:
        none = {} if self.shape is None else no_units(self.shape)
        rest: Chosen = {site: self.mixture.get(site, none.get(site, self.mlp)) for site in MIXTURE_SITES}
        object.__setattr__(self, "mixture", rest)
        require_chosen(self._chosen, self.shape)
        if len(lengths := {len(rows) for rows in self._chosen.values()}) > 1:
            raise ValueError(f"a mask is of one number of layers, not of {' and '.join(map(str, sorted(lengths)))}")

    # --- made of units, of layers, at random ---------------------------------------------------------------------

    @classmethod
    def of_units(cls, units: Indices, model: Any, provenance: Mapping[str, Any] | None = None) -> FreezeMask:
        """The units with these indices: ``FreezeMask.of_units({"mlp": {5: [3, 7]}, "attn": {5: [0]}}, model)``.

        Args:
            units: site, layer, units; indices in any collection, an array or a tensor. Experts' neurons also by expert:
                ``{"expert": {5: {2: [3, 7]}}}`` are neurons 3 and 7 of expert 2.
            model: whose units they are: a model, or its ``ModelShape``.

        Raises:
            ValueError: for anything but units, by site and layer, that the model has.
        """
        shape = shape_of(model)
        return cls.where(chosen_of(units, shape), shape, provenance)

    @classmethod
    def layers(cls, layers: Layers, model: Any = None, provenance: Mapping[str, Any] | None = None) -> FreezeMask:
        """All units of whole layers (0-indexed): all of their attention and MLP parameters, but not their norms.

        ``(3, 5)``, ``[3, 5]`` and ``LayerRange(3, 5)`` mean layers 3, 4 and 5. ``{3, 5}`` and ``range(3, 6)`` name the
        layers themselves, and so does a single number. ``model`` is one, or its ``ModelShape``; neither is needed.
        """
        if hasattr(model, "__index__"):
            raise ValueError(f"give both ends of a range as a pair, FreezeMask.layers(({layers}, {model}))")
        chosen = layer_indices(layers)
        rows = torch.zeros(max(chosen, default=-1) + 1, 1, dtype=torch.bool)
        rows[chosen] = True
        mask = cls(rows, rows.clone(), None, provenance or {})
        return mask if model is None else mask.on(model)

    @classmethod
    def where(cls, chosen: Chosen, shape: ModelShape, provenance: Mapping[str, Any] | None = None) -> FreezeMask:
        """The units where a tensor is True; a site that is not given has none."""
        require_chosen(chosen, shape)
        return cls._of(no_units(shape) | {site: rows.cpu() for site, rows in chosen.items()}, shape, provenance or {})

    @classmethod
    def random_units(cls, like: FreezeMask, model: Any = None, seed: int = 0, *, per_layer: bool = False) -> FreezeMask:
        """A size-matched control: as many units of each site as ``like`` has, drawn without replacement.

        Args:
            model: whose units, or its ``ModelShape``, where ``like`` is of layers alone.
            per_layer: as many in each layer, so that chance differs in *which* units alone; otherwise over all layers.
        """
        model = require_mask(like, "the units that a control is like").shape if model is None else model
        if model is None:
            raise ValueError("a random control needs the model's shape: pass the model, or its ModelShape")
        like, shape = units_of(model, like, "the units that a control is like"), shape_of(model)
        generator = torch.Generator().manual_seed(whole(seed, "seed", 0))
        chosen: dict[Site, Tensor] = {
            site: as_many(like.at(site), shape.layers_with(site), generator, per_layer=per_layer) for site in ALL_SITES
        }
        return cls.where(chosen, shape, {"random_like": dict(like.provenance), "seed": seed})

    # --- algebra -------------------------------------------------------------------------------------------------

    def __or__(self, other: FreezeMask) -> FreezeMask:
        return self._combined(other, "|", torch.logical_or)

    def __and__(self, other: FreezeMask) -> FreezeMask:
        return self._combined(other, "&", torch.logical_and)

    def __sub__(self, other: FreezeMask) -> FreezeMask:
        return self._combined(other, "-", lambda a, b: a & ~b)

    def __invert__(self) -> FreezeMask:
        if self.shape is None:
            raise ValueError("the complement needs the model's shape: use ~mask.on(model)")
        rest: Chosen = {site: ~rows & present(self.shape, site) for site, rows in self._chosen.items()}
        return self._of(rest, self.shape, {"op": "~", "of": [dict(self.provenance)]})

    def restrict(self, layers: Layers | None = None, sites: Iterable[Site] | Site | None = None) -> FreezeMask:
        """Only what lies in these layers (read as in ``FreezeMask.layers``) and at these sites."""
        kept = {sites} if isinstance(sites, str) else set(ALL_SITES if sites is None else sites)
        if not kept <= set(ALL_SITES):
            raise ValueError(f"a site is one of {', '.join(ALL_SITES)}, not {sorted(kept - set(ALL_SITES))[0]!r}")
        if self.shape is None and "mlp" in kept:
            kept |= set(MIXTURE_SITES)  # without a shape the MLP is what stands in its place, too
        rows = torch.ones(len(self.mlp), 1, dtype=torch.bool)
        if layers is not None:
            rows.zero_()[[layer for layer in layer_indices(layers) if layer < len(rows)]] = True
        left: Chosen = {site: units & rows & (site in kept) for site, units in self._chosen.items()}
        return self._of(left, self.shape, self.provenance)

    def on(self, model: Any) -> FreezeMask:
        """The same units of this model, or of one of this ``ModelShape``.

        Raises:
            ValueError: if the mask belongs to another model, or reaches beyond it.
        """
        shape = shape_of(model)
        if self.shape is not None:
            self.shape.require_same(shape, "the freeze mask")
            return self
        if len(self.mlp) > shape.n_layers:
            raise ValueError(
                f"the freeze mask reaches layer {len(self.mlp) - 1}, "
                f"but the model's layers are 0 to {shape.n_layers - 1}"
            )
        everywhere: Chosen = {site: expanded(rows, shape, site) for site, rows in self._chosen.items()}
        return self._of(everywhere, shape, self.provenance)

    def __eq__(self, other: object) -> bool:
        """Equal masks are of the same units of the same shape; where they come from does not count."""
        if not isinstance(other, FreezeMask):
            return NotImplemented
        return self.shape == other.shape and all(torch.equal(self.at(site), other.at(site)) for site in ALL_SITES)

    def __hash__(self) -> int:
        return hash((self.shape, *(rows.numpy().tobytes() for rows in self._chosen.values())))

    def __bool__(self) -> bool:
        """Whether any unit is in the mask."""
        return any(bool(rows.any()) for rows in self._chosen.values())

    # --- what is in it -------------------------------------------------------------------------------------------

    @property
    def whole_layers(self) -> tuple[int, ...]:
        """The layers of which every unit is in the mask, and with them all attention and MLP parameters."""
        return whole_layers(self._chosen, self.shape)

    def at(self, site: Site) -> Bool[Tensor, "layer unit"]:
        """The units of a site, True for each that is in the mask."""
        if site not in ALL_SITES:
            raise ValueError(f"a site is one of {', '.join(ALL_SITES)}, not {site!r}")
        return self._chosen[site]

    def members(self, site: Site) -> dict[int, tuple[int, ...]]:
        """The units of a site by layer, as indices. A mask without a shape cannot list them."""
        if self.shape is None:
            raise ValueError("a mask without a shape has no unit indices: use mask.on(model)")
        rows = enumerate(self.at(site))
        return {layer: tuple(row.nonzero().flatten().tolist()) for layer, row in rows if row.any()}

    def n_units(self, *sites: Site) -> int:
        """How many units there are: of these sites, or of all."""
        if self.shape is None:
            raise ValueError("a mask without a shape cannot count its units: use mask.on(model)")
        return sum(int(self.at(site).sum()) for site in sites or ALL_SITES)

    def share_of_units(self) -> float:
        """The share of all units that is in the mask, neurons and heads counted alike."""
        if self.shape is None:
            raise ValueError("a share needs the model's shape: use mask.on(model)")
        return self.n_units() / self.shape.total_units

    def share_of_parameters(self, model: Any) -> float:
        """The frozen share of all entries of the model's parameters, embeddings included."""
        total = sum(p.numel() for p in checkpoint_parameters(model).values())
        return sum(int(mask.sum()) for mask in self.parameter_masks(model).values()) / total

    def summary(self, model: Any = None) -> str:
        """What is in the mask, in a few lines; with a model also the share of its parameters."""
        mask = self if model is None else self.on(model)
        lines = described(mask._chosen, mask.shape)
        if mask.shape is not None:
            lines.append(f"share of units: {100 * mask.share_of_units():.2f} %")
        if model is not None:
            lines.append(f"share of parameters: {100 * mask.share_of_parameters(model):.2f} %")
        return "\n".join(lines)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of what is in the mask; where it comes from does not count."""
        rows = [self.mlp, self.attn, *unsaid(self.mixture, self.mlp, self.shape).values()]
        return hashlib.sha256(b"".join(units.numpy().tobytes() for units in rows)).hexdigest()[:16]

    def record(self) -> dict[str, list[float]]:
        """The share of each layer's units that is in the mask, by site."""
        rows: Chosen = {"mlp": self.mlp, "attn": self.attn, **unsaid(self.mixture, self.mlp, self.shape)}
        return {site: units.float().mean(1).tolist() for site, units in rows.items() if units.shape[1]}

    def plot(self, ax: Axes | None = None) -> Axes:
        """The share of each layer's MLP neurons and attention heads; a mask of layers alone shows its layers."""
        from safecircuits.plots.masks import plot_mask

        return plot_mask(self, ax=ax)

    def __repr__(self) -> str:
        return f"FreezeMask({'; '.join(self.summary().splitlines())})"

    def _repr_html_(self) -> str:
        from safecircuits.results.notebook import facts_table

        return facts_table("FreezeMask", self.summary().splitlines())

    # --- meeting a model -----------------------------------------------------------------------------------------

    def parameter_masks(self, model: Any) -> Masks:
        """Boolean tensors, True where frozen, by parameter name; parameters with no frozen entry are left out.

        Names are Hugging Face's for a plain Hugging Face model and for a bridge, and its own for a HookedTransformer.

        Raises:
            ValueError: for another model's mask, one that comes to no parameter of this model, and units in a layer
                that has none (a mixture of experts) or whose matrices they do not make up.
        """
        return self.masks_on(model)[1]

    def masks_on(self, model: Any) -> tuple[Masks, Masks]:
        """``parameter_masks`` twice: by the names that a model computes with, and by those of its checkpoint."""
        return masks_on(model, self.on(model)._chosen)

    def hooked_masks(self, model: Any) -> Masks:
        """The same by a hooked model's own names, which on a bridge include both fused and split parameters."""
        return hooked_masks(model, self.on(model)._chosen)

    # --- file ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the mask as safetensors with a JSON header; an existing file is replaced only by a complete one."""
        more = unsaid(self.mixture, self.mlp, self.shape)
        return mask_file.save(mask_file.StoredMask(self.mlp, self.attn, self.shape, self.provenance, more), path)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> FreezeMask:
        """Read a mask and, when a model is given, check that it belongs to it; a ValueError for anything else."""
        mask = cls(*mask_file.load(path))
        return mask if model is None else mask.on(model)

    # -------------------------------------------------------------------------------------------------------------

    @property
    def _chosen(self) -> Chosen:
        return {"mlp": self.mlp, "attn": self.attn, **self.mixture}

    @classmethod
    def _of(cls, rows: Chosen, shape: ModelShape | None, provenance: Mapping[str, Any]) -> FreezeMask:
        rows = rows if shape is not None else trimmed(rows)
        return cls(rows["mlp"], rows["attn"], shape, provenance, {site: rows[site] for site in MIXTURE_SITES})

    def _combined(self, other: FreezeMask, op: str, rule: Callable[[Tensor, Tensor], Tensor]) -> FreezeMask:
        if not isinstance(other, FreezeMask):
            return NotImplemented
        shape = self.shape or other.shape
        if self.shape is not None and other.shape is not None:
            other.shape.require_same(self.shape, "the second freeze mask")
        one, two = (self, other) if shape is None else (self.on(shape), other.on(shape))
        n_layers = max(len(one.mlp), len(two.mlp))
        rows: Chosen = {site: rule(*(of_layers(m.at(site), n_layers) for m in (one, two))) for site in ALL_SITES}
        provenance = {"op": op, "of": [dict(self.provenance), dict(other.provenance)]}
        return self._of(rows, shape, provenance)


def units_of(model: Any, units: Any, what: str = "units") -> FreezeMask:
    """``units`` as a mask of this model (or ``ModelShape``): how every function reads the units that it is given.

    Raises:
        ValueError: for anything but a FreezeMask, and for another model's.
    """
    return require_mask(units, what).on(model)


def require_mask(units: Any, what: str = "units") -> FreezeMask:
    """``units``; a ValueError that says how units are given if it is no FreezeMask."""
    if isinstance(units, FreezeMask):
        return units
    raise ValueError(
        f"{what} are given as a FreezeMask, such as FreezeMask.layers((3, 5)), groups['SCU'] or "
        f"FreezeMask.of_units({{'mlp': {{5: [3, 7]}}}}, model), not as a {type(units).__name__}"
    )
