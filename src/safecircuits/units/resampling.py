"""Would other prompts have found the same units? Overlap and rank correlation over calibration sets.

Groups found on different subsets, data sets or seeds are compared pair by pair: Jaccard overlap of each group, beside
what two random groups of that size share, and Spearman's correlation of the order S − U.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.stats import mean_interval
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.units.groups import GROUPS, Normalisation, UnitGroups, classify_units
from safecircuits.units.importance import score_units
from safecircuits.units.overlap import mask_overlap
from safecircuits.units.score_methods import Method
from safecircuits.units.selection import flat, mean_ranks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Calibrations = Mapping[str, tuple[PromptSet, PromptSet]]
"""Safety and utility prompts by name."""


@dataclass(frozen=True)
class Stability(Result):
    """How alike the groups are that were found on each calibration set.

    Examples:
        >>> subsets = sc.units.calibration_subsets(malicious, utility, n=4, draws=2)
        >>> found = sc.units.stability(model, subsets, scu=0.01, ucu=0.1, ru=0.1)
        >>> found.jaccard["SCU"].shape, found.rank_correlation.shape
        (torch.Size([2, 2]), torch.Size([2, 2]))
    """

    names: tuple[str, ...]
    jaccard: Mapping[str, Float[Tensor, "set set"]]
    """By group; 1 where both are empty."""
    chance: Mapping[str, float]
    """Expected Jaccard overlap of two random groups of that size."""
    rank_correlation: Float[Tensor, "set set"]
    """Spearman's ρ of S − U over all units."""
    provenance: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a group, and one for the order: mean over pairs of calibration sets, its 95 % interval, and least.

        The interval is over calibration sets: each is left out in turn (jackknife). Two of them have none (NaN).
        """
        import pandas as pd

        rows = [
            {"what": f"Jaccard {group}", **_pairs(values), "chance": self.chance[group]}
            for group, values in self.jaccard.items()
        ]
        rows.append({"what": "rank correlation of S − U", **_pairs(self.rank_correlation, -1.0), "chance": 0.0})
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """``jaccard`` by group as a matrix over the ``names``, its ``means`` over pairs, and what ``chance`` gives."""
        jaccard = {group: values.numpy() for group, values in self.jaccard.items()}
        means = {group: _pairs(values) for group, values in self.jaccard.items()}
        return {"names": self.names, "jaccard": jaccard, "chance": dict(self.chance), "means": means}

    def plot(self, ax: Axes | None = None, *, group: str = "SCU") -> Axes:
        """Jaccard overlap of a group between calibration sets as a matrix, in percent."""
        from safecircuits.plots.scores import plot_stability

        return plot_stability(self, group, ax=ax)


@checked
def calibration_subsets(
    safety: PromptSet, utility: PromptSet, *, n: int, draws: int = 5, seed: int = 0
) -> dict[str, tuple[PromptSet, PromptSet]]:
    """``draws`` random subsets of ``n`` prompts of each set, named by their seed.

    Examples:
        >>> subsets = sc.units.calibration_subsets(malicious, utility, n=4, draws=2)
        >>> [(len(safety), len(answers)) for safety, answers in subsets.values()]
        [(4, 4), (4, 4)]
    """
    if draws < 2:
        raise ValueError(f"stability compares calibration sets: draw at least 2, not {draws}")
    seeds = range(seed, seed + draws)
    return {f"seed {s}": (safety.take(n, seed=s), utility.take(n, seed=s)) for s in seeds}


@checked
def stability(
    model: HookedModel,
    calibrations: Calibrations,
    *,
    scu: float,
    ucu: float,
    ru: float,
    method: Method = "wifv",
    normalize: Normalisation = "none",
    progress: bool = False,
    **options: Any,
) -> Stability:
    """Classify the units on each calibration set and compare the groups.

    Args:
        calibrations: subsets (``calibration_subsets``), data sets or whatever else is to be compared, by name.
        scu, ucu, ru, normalize: as in ``classify_units``.
        method, options: as in ``score_units``.

    Raises:
        ValueError: for fewer than two calibration sets.

    Examples:
        >>> subsets = sc.units.calibration_subsets(malicious, utility, n=4, draws=3)
        >>> found = sc.units.stability(model, subsets, scu=0.01, ucu=0.1, ru=0.1)
        >>> found.names
        ('seed 0', 'seed 1', 'seed 2')
    """
    if len(calibrations) < 2:
        raise ValueError(f"stability compares calibration sets: give at least 2, not {len(calibrations)}")
    found: dict[str, UnitGroups] = {}
    for name, sets in track(calibrations.items(), "stability", total=len(calibrations), enabled=progress):
        safety, utility = (score_units(model, data, method=method, **options) for data in sets)
        found[name] = classify_units(safety, utility, scu=scu, ucu=ucu, ru=ru, normalize=normalize)
    return compare_groups(found)


def compare_groups(found: Mapping[str, UnitGroups]) -> Stability:
    """The comparison for groups that are there already: of several methods, seeds or checkpoints of one shape.

    Raises:
        ValueError: for fewer than two classifications, or ones of models of different shape or of different sites.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> few, many = (sc.classify_units(safety, answers, scu=share, ucu=0.1, ru=0.1) for share in (0.01, 0.02))
        >>> sc.units.compare_groups({"1 %": few, "2 %": many}).names
        ('1 %', '2 %')
    """
    names, groups = tuple(found), list(found.values())
    if len(found) < 2:
        raise ValueError(f"stability compares classifications: give at least 2, not {len(found)}")
    for name, other in found.items():
        other.shape.require_same(groups[0].shape, f"classification {name!r}")
        if set(other.sites) != set(groups[0].sites):
            raise ValueError(
                f"{name!r} is of the sites {sorted(other.sites)}, {names[0]!r} of {sorted(groups[0].sites)}: score "
                "the same sites"
            )
    ranks = [mean_ranks(flat(g.difference)) for g in groups]
    n = len(groups)
    jaccard: dict[str, Tensor] = {group: torch.eye(n, dtype=torch.float64) for group in GROUPS}
    correlation = torch.eye(n, dtype=torch.float64)
    for i, j in itertools.combinations(range(n), 2):
        correlation[i, j] = correlation[j, i] = torch.corrcoef(torch.stack([ranks[i], ranks[j]]))[0, 1]
        for group, values in jaccard.items():
            values[i, j] = values[j, i] = mask_overlap(groups[i][group], groups[j][group]).jaccard
    shares: dict[str, float] = {group: sum(g.shares()[group] for g in groups) / n for group in GROUPS}
    chance = {group: share / (2 - share) for group, share in shares.items()}
    return Stability(names, jaccard, chance, correlation, {"groups": {name: g.provenance for name, g in found.items()}})


def _pairs(values: Tensor, least: float = 0.0) -> dict[str, float]:
    """Mean over pairs, its 95 % interval (of the jackknife's pseudo-values, at least ``least``), and the least."""
    off = values[~torch.eye(len(values), dtype=torch.bool)]
    n, mean = len(values), float(off.mean())
    low = high = float("nan")
    if n > 2:
        total = float(off.double().sum())
        left = (total - 2 * (values.double().sum(1) - values.double().diagonal())) / ((n - 1) * (n - 2))
        _, low, high = mean_interval(n * mean - (n - 1) * left, within=(least, 1.0))
    return {"mean": mean, "low": low, "high": high, "least": float(off.min())}
