"""Where the two papers meet: are safety-critical units concentrated in the safety layers?

Under the null hypothesis the units of a group are spread over the layers at random. Then a layer holds a hypergeometric
number of them, and permuting the units over the layers, each site by itself, gives the same with the sites kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import SITES, LayerRange, Site
from safecircuits.masks.freeze_mask import FreezeMask, require_mask
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class BlockEnrichment:
    """The group's units in a block of layers as a whole.

    Attributes:
        count, expected: units of the group there, and as many as chance would put there.
        p: probability of as many or more by chance (hypergeometric).
        low, high: the middle 95 % of counts over permutations.
        rank: place among all contiguous blocks of as many layers, 1 for the one with most.
        n_blocks: how many there are.
    """

    layers: LayerRange
    count: int
    n_units: int
    expected: float
    p: float
    low: float
    high: float
    rank: int
    n_blocks: int

    @property
    def fold(self) -> float:
        """Count over expected."""
        return self.count / self.expected

    def __str__(self) -> str:
        return (
            f"layers {self.layers}: {self.count} units, {self.fold:.2f} times the {self.expected:.1f} of chance "
            f"(95 % of permutations {self.low:g} to {self.high:g}, p = {self.p:.2g}); "
            f"place {self.rank} of {self.n_blocks} blocks of this length"
        )


@dataclass(frozen=True)
class Enrichment(Result):
    """Units of a set by layer, against chance.

    Attributes:
        group: the name of the set.
        counts: by site, and in ``n_units`` how many units the layers have.
        p: probability of as many or more by chance, all sites together; ``q`` corrected for the number of layers
            (Benjamini and Hochberg).
        low, high: the middle 95 % of counts over permutations, all sites together.
        block: the layers asked about, if any.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> groups = sc.classify_units(safety, answers, scu=0.01, ucu=0.1, ru=0.1)
        >>> found = sc.units.enrichment(groups["SCU"], (3, 5), draws=1000)
        >>> found.to_frame().shape[0], int(found.total.sum())
        (8, 31)
    """

    group: str
    counts: Mapping[Site, Int[Tensor, " layer"]]
    n_units: Mapping[Site, int]
    expected: Float[Tensor, " layer"]
    p: Float[Tensor, " layer"]
    q: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    block: BlockEnrichment | None
    provenance: dict[str, Any]

    @property
    def total(self) -> Int[Tensor, " layer"]:
        """Units of the set in each layer, all sites together."""
        return torch.stack(list(self.counts.values())).sum(0)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": range(len(self.total)),
                **{f"units_{site}": counts.tolist() for site, counts in self.counts.items()},
                "units": self.total.tolist(),
                "share_of_layer": (self.total / sum(self.n_units.values())).tolist(),
                "expected": self.expected.tolist(),
                "fold": (self.total / self.expected).tolist(),
                "p": self.p.tolist(),
                "q": self.q.tolist(),
                "chance_low": self.low.tolist(),
                "chance_high": self.high.tolist(),
            }
        )

    def record(self) -> dict[str, Any]:
        """By layer: ``counts`` by site, their ``total``, what chance has (``expected``, ``low``, ``high``), ``q``."""
        by_layer = {name: getattr(self, name).numpy() for name in ("total", "expected", "low", "high", "q")}
        counts = {site: counts.numpy() for site, counts in self.counts.items()}
        block = None if self.block is None else list(self.block.layers)
        return {"group": self.group, "counts": counts, **by_layer, "block": block}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Counts by layer as bars, chance as a band, the block marked."""
        from safecircuits.plots.enrichment import plot_enrichment

        return plot_enrichment(self, ax=ax)

    def __str__(self) -> str:
        above = [layer for layer, (q, n) in enumerate(zip(self.q, self.total, strict=True)) if q < 0.05 and n]
        listed = ", ".join(map(str, above)) or "none"
        lines = [f"{int(self.total.sum())} {self.group}; layers with more than chance (q < 0.05): {listed}"]
        return "\n".join([*lines, *([str(self.block)] if self.block else [])])


@checked
def enrichment(
    units: FreezeMask,
    layers: LayerRange | tuple[int, int] | None = None,
    *,
    sites: Sequence[Site] = SITES,
    name: str | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Enrichment:
    """Compare the layers in which units lie with chance: those of a group, of a score's highest, or any others.

    Args:
        units: such as ``groups["SCU"]``.
        layers: the safety layers, 0-indexed and inclusive, to be tested as a whole.
        sites: where the units were taken from; ``groups.sites``, where not both were scored.
        name: of the set; its group unless given.
        draws, seed: permutations.

    Raises:
        ValueError: for an empty set, units outside the sites, no draws, or layers outside the model.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> groups = sc.classify_units(safety, answers, scu=0.01, ucu=0.1, ru=0.1)
        >>> found = sc.units.enrichment(groups["SCU"], layers=(3, 5), draws=1000)
        >>> 0 <= found.block.p <= 1
        True
    """
    from scipy.stats import false_discovery_control, hypergeom

    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    shape = require_mask(units).shape
    if shape is None:
        raise ValueError("a mask of layers lies in these layers alone: there is no chance to compare with")
    name = name or units.provenance.get("group") or "units"
    counts = {site: units.at(site).sum(1) for site in sites}
    if sum(int(rows.sum()) for rows in counts.values()) < units.n_units():
        raise ValueError(f"some of the {name} are not at the sites {', '.join(sites)}, where they are said to be from")
    n_units = {site: shape.n_units(site) for site in sites}
    n_layers = shape.n_layers
    per_layer, total = sum(n_units.values()), torch.stack(list(counts.values())).sum(0)
    n_group, everything = int(total.sum()), n_layers * per_layer
    if not n_group:
        raise ValueError(f"there are no {name}: there is nothing to be concentrated")
    rng = np.random.default_rng(seed)
    # Units are alike within a site, so a permutation is a draw of how many fall into each layer.
    permuted = np.sum(
        [
            rng.multivariate_hypergeometric([n_units[site]] * n_layers, int(rows.sum()), size=draws)
            for site, rows in counts.items()
        ],
        axis=0,
    )
    p = hypergeom.sf(total.numpy() - 1, everything, n_group, per_layer)
    low, high = np.quantile(permuted, [0.025, 0.975], axis=0)
    block = None
    if layers is not None:
        chosen = LayerRange.of(layers, n_layers)
        window = [int(total[first : first + len(chosen)].sum()) for first in range(n_layers - len(chosen) + 1)]
        count, size = window[chosen.first], len(chosen) * per_layer
        block_low, block_high = np.quantile(
            permuted[:, chosen.first : chosen.last + 1].sum(1),
            [0.025, 0.975],
        )
        block = BlockEnrichment(
            layers=chosen,
            count=count,
            n_units=size,
            expected=n_group * size / everything,
            p=float(hypergeom.sf(count - 1, everything, n_group, size)),
            low=float(block_low),
            high=float(block_high),
            rank=1 + sum(other > count for other in window),
            n_blocks=len(window),
        )
    return Enrichment(
        group=name,
        counts=counts,
        n_units=n_units,
        expected=torch.full((n_layers,), n_group / n_layers, dtype=torch.float64),
        p=torch.from_numpy(p),
        q=torch.from_numpy(np.asarray(false_discovery_control(p))),
        low=torch.from_numpy(low),
        high=torch.from_numpy(high),
        block=block,
        provenance={**units.provenance, "draws": draws, "seed": seed},
    )


@dataclass(frozen=True)
class MaskOverlap(Result):
    """How far two masks name the same units.

    Attributes:
        a, b, both: units of each mask and of both.
        jaccard: both over either; 1 where both masks are empty.
        a_in_b, b_in_a: share of one mask that the other contains; NaN for an empty mask.
        chance: what two random masks of these sizes would have for Jaccard overlap, about.

    Examples:
        >>> shape = sc.ModelShape.of(model)
        >>> found = sc.units.mask_overlap(sc.FreezeMask.layers((2, 4), shape), sc.FreezeMask.layers((3, 5), shape))
        >>> found.a_in_b > found.chance
        True
    """

    a: int
    b: int
    both: int
    jaccard: float
    a_in_b: float
    b_in_a: float
    chance: float

    def __str__(self) -> str:
        return (
            f"{self.both} units in both; {100 * self.a_in_b:.1f} % of the first are in the second, "
            f"{100 * self.b_in_a:.1f} % of the second in the first; "
            f"Jaccard {self.jaccard:.3f} (chance {self.chance:.3f})"
        )


def mask_overlap(a: FreezeMask, b: FreezeMask) -> MaskOverlap:
    """Overlap of two masks of one model in units, such as that of SCUs and that of the safety layers.

    Raises:
        ValueError: if neither mask has a shape, or they belong to different models.

    Examples:
        >>> shape = sc.ModelShape.of(model)
        >>> found = sc.units.mask_overlap(sc.FreezeMask.layers((2, 4), shape), sc.FreezeMask.layers((3, 5), shape))
        >>> found.both, round(found.jaccard, 2)
        (784, 0.5)
    """
    a, b = require_mask(a, "the first units"), require_mask(b, "the second units")
    shape = a.shape or b.shape
    if shape is None:
        raise ValueError("two masks of layers have no units to compare: use mask.on(model)")
    a, b = a.on(shape), b.on(shape)
    n_a, n_b, both, either = a.n_units(), b.n_units(), (a & b).n_units(), (a | b).n_units()
    expected = n_a * n_b / shape.total_units
    return MaskOverlap(
        a=n_a,
        b=n_b,
        both=both,
        jaccard=both / either if either else 1.0,
        a_in_b=both / n_a if n_a else float("nan"),
        b_in_a=both / n_b if n_b else float("nan"),
        chance=expected / (n_a + n_b - expected) if either else 1.0,
    )
