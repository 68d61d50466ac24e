"""Which score is right? The one whose first few units carry refusal: ablation curves of many scores side by side.

Of each score the units are removed from the highest down, and at each number of removed units refusal and utility are
measured. The area between what is lost of refusal and what is lost of utility sums a curve up (1: the first unit takes
all refusal and no utility; 0: both fall alike or neither does), and the smallest set is the first that halves refusal
at a small cost of utility.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from safecircuits.base.arguments import checked
from safecircuits.base.counted import keys
from safecircuits.base.progress import track
from safecircuits.base.stats import interval_of_rate
from safecircuits.base.vocabulary import SITES, Site
from safecircuits.behavior.categories import category_frame
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.verdict_table import Tally
from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.units.candidates import Candidate, CandidateScores, default_candidates
from safecircuits.units.removals import Removals
from safecircuits.units.selection import top

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
"""How many units are removed, one after the other."""


@dataclass(frozen=True)
class CurvePoint:
    """What is left without the first ``removed`` units."""

    removed: int
    refusal: float
    utility: float
    planted: int | None
    """How many of them were planted, where that is known."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Of the answers whose refusals are counted, ``malicious_n``, ``_incoherent`` and ``_cut``."""
    kl: Mapping[str, float] = field(default_factory=dict)
    """Mean first-token KL to the intact model in nats, on ``malicious`` and on ``harmless`` prompts."""
    by_category: Mapping[str, Mapping[str, Tally]] = field(default_factory=dict)
    """By set and category of its prompts what the answers are, for sets that have categories."""


@dataclass(frozen=True)
class ScoreCurve:
    """The ablation curve of one candidate."""

    candidate: Candidate
    points: tuple[CurvePoint, ...]
    area: float
    """Mean over log₂ of the removed units of (share of refusal lost − share of utility lost); at most 1."""
    smallest: int | None
    """Fewest removed units that halve refusal at no more than the allowed loss of utility; None if no set did."""

    @property
    def kl_at_smallest(self) -> float:
        """First-token KL on harmless prompts without the smallest set, in nats; NaN where there is none."""
        there = [p.kl["harmless"] for p in self.points if p.removed == self.smallest and "harmless" in p.kl]
        return there[0] if there else float("nan")


@dataclass(frozen=True)
class ScoreComparison(Result):
    """The ablation curves of all candidates on one model.

    Examples:
        >>> found = sc.score_comparison(
        ...     model,
        ...     malicious,
        ...     utility,
        ...     normal,
        ...     candidates=[sc.units.Candidate("magnitude", "all")],
        ...     counts=[16],
        ...     malicious=malicious,
        ...     utility=utility,
        ... )
        >>> found.to_frame().shape
        (1, 7)
    """

    intact: Behavior
    curves: tuple[ScoreCurve, ...]
    n_units: int
    n_planted: int | None
    planted_removed: CurvePoint | None
    """With exactly the planted units removed."""
    provenance: dict[str, Any]

    def ranked(self) -> tuple[ScoreCurve, ...]:
        """Best first: the smallest sufficient set, then the largest area."""
        return tuple(sorted(self.curves, key=lambda c: (c.smallest or self.n_units + 1, -c.area)))

    def best(self, *methods: str) -> ScoreCurve:
        """The best curve, of the named methods or of all.

        Raises:
            ValueError: if none of the methods was compared.
        """
        found = [curve for curve in self.ranked() if not methods or curve.candidate.method in methods]
        if not found:
            raise ValueError(f"none of {', '.join(methods)} was compared")
        return found[0]

    def to_frame(self) -> pd.DataFrame:
        """One row a candidate, best first: smallest set, area, KL at that set, precision and recall of planted units.

        Precision and recall are of as many units as were planted, or of the nearest number that was measured.
        """
        import pandas as pd

        rows = []
        for curve in self.ranked():
            c = curve.candidate
            row = {
                "score": c.method,
                "tokens": c.tokens,
                "normalize": c.normalize,
                "contrast": c.contrast,
                "smallest_set": curve.smallest,
                "area": curve.area,
                "harmless_first_token_kl": curve.kl_at_smallest,
            }
            if self.n_planted:
                near = min(curve.points, key=lambda p: abs(p.removed - self.n_planted))  # type: ignore[operator]
                row |= {
                    "at": near.removed,
                    "precision": (near.planted or 0) / near.removed,
                    "recall": (near.planted or 0) / self.n_planted,
                }
            rows.append(row)
        return pd.DataFrame(rows).astype({"smallest_set": "Int64"})

    def categories(self) -> pd.DataFrame:
        """One row a candidate, number of removed units, set and category of its prompts (``category_frame``)."""
        rows = [({"score": "intact", "removed": 0}, self.intact.by_category)]
        for curve in self.ranked():
            rows += [({"score": str(curve.candidate), "removed": p.removed}, p.by_category) for p in curve.points]
        return category_frame(rows, ["score", "removed"])

    def record(self) -> dict[str, Any]:
        """The ``intact`` rates, and the ``curves`` of all candidates, best first."""
        n = {name: values.numel() for name in ("malicious", "utility") for values in [getattr(self.intact, name)]}
        curves = [
            {
                "method": curve.candidate.method,
                "label": str(curve.candidate),
                "removed": [point.removed for point in curve.points],
                "refusal": [point.refusal for point in curve.points],
                "utility": [point.utility for point in curve.points],
                "refusal_interval": [
                    list(interval_of_rate(p.refusal, p.beside.get("malicious_n", n["malicious"]))) for p in curve.points
                ],
                "utility_interval": [list(interval_of_rate(p.utility, n["utility"])) for p in curve.points],
                **{f"{of}_first_token_kl": [p.kl[of] for p in curve.points] for of in curve.points[0].kl},
            }
            for curve in self.ranked()
        ]
        return {"intact": self.intact.rates, "curves": curves}

    def plot(self, ax: Axes | None = None, *, methods: Sequence[str] | None = None) -> Axes:
        """Refusal and utility left against the number of removed units, the best curve of each method."""
        from safecircuits.plots.scores import plot_score_comparison

        return plot_score_comparison(self, methods, ax=ax)


@checked
def score_comparison(
    model: HookedModel,
    safety: PromptSet,
    utility_data: PromptSet,
    reference: PromptSet,
    *,
    candidates: Sequence[Candidate] | None = None,
    counts: Sequence[int] | None = None,
    sites: Sequence[Site] = SITES,
    planted: FreezeMask | None = None,
    max_utility_loss: float = 0.02,
    max_kl: float | None = None,
    proportionate: bool = False,
    resume: str | Path | None = None,
    progress: bool = False,
    **sets: Unpack[EvaluationOptions],
) -> ScoreComparison:
    """Compare scores by their ablation curves: how few units, removed from the top, end refusal and spare utility?

    Args:
        safety, utility_data: what units are scored on; both with responses.
        reference: normal prompts, with which attribution compares.
        candidates: ``default_candidates()`` unless given.
        counts: how many units are removed, ascending; ``COUNTS`` as far as there are units unless given.
        planted: the units that carry refusal by construction, where they are known.
        max_utility_loss: how much utility (of 1) a sufficient set may cost.
        max_kl: how far from the intact model its first tokens on harmless prompts may be, in nats; any unless given.
        proportionate: remove as large a part of the neurons as of the heads, each ranked apart, as ``classify_units``
            cuts groups; otherwise both are in one ranking.
        resume: a file for the measurements, so that an interrupted comparison goes on where it was.
        sets: passed to ``evaluate``; ``malicious`` and ``utility`` are required, and should not be what is scored on.

    Raises:
        ValueError: for missing sets, counts that do not ascend from 1 or exceed the units, or a model that refuses
            nothing.

    Examples:
        >>> wifv = sc.units.Candidate("wifv", "all")
        >>> found = sc.score_comparison(
        ...     model, malicious, utility, normal, candidates=[wifv], counts=[16], malicious=malicious, utility=utility
        ... )
        >>> found.curves[0].candidate == wifv
        True
    """
    if sets.get("malicious") is None or sets.get("utility") is None:
        raise ValueError("an ablation curve needs malicious= and utility= prompts to be measured on")
    shape = ModelShape.of(model)
    n_units = sum(shape.n_layers * shape.n_units(site) for site in sites)
    counts = tuple(count for count in COUNTS if count <= n_units) if counts is None else tuple(counts)
    if not counts or counts[0] < 1 or any(a >= b for a, b in itertools.pairwise(counts)):
        raise ValueError(f"counts must ascend from 1 or more, not {counts}")
    chosen = default_candidates() if candidates is None else tuple(candidates)
    if counts[-1] > n_units:
        raise ValueError(f"cannot remove {counts[-1]} of {n_units} units")
    planted = None if planted is None else units_of(shape, planted, "the planted units")
    removals = Removals(model, kl_tokens=1, resume=resume, **sets)
    intact = removals.intact
    if not intact.rates["malicious_refused"]:
        raise ValueError("the intact model refuses nothing, so no unit can carry refusal")
    scores = CandidateScores(model, safety, utility_data, reference, tuple(sites), sets)
    curves = []
    for candidate in track(chosen, "score comparison", total=len(chosen), enabled=progress):
        order = scores.order(candidate)
        removed = (top(order, count, shape, proportionate=proportionate) for count in counts)
        points = tuple(_point(removals, units, planted) for units in removed)
        curves.append(_curve(candidate, points, intact, max_utility_loss, max_kl))
    return ScoreComparison(
        intact,
        tuple(curves),
        n_units,
        None if planted is None else planted.n_units(),
        None if planted is None else _point(removals, planted, planted),
        {
            **{
                name: data.identity
                for name, data in (("safety", safety), ("utility", utility_data), ("reference", reference))
            },
            "sites": list(sites),
            "counts": list(counts),
            "max_utility_loss": max_utility_loss,
            "max_kl": max_kl,
            "proportionate": proportionate,
        },
    )


def _point(removals: Removals, units: FreezeMask, planted: FreezeMask | None) -> CurvePoint:
    behavior = removals.without(units)
    found = None if planted is None else (units & planted).n_units()
    beside = {key: behavior.figures[key] for key in keys("malicious_refused").values() if key in behavior.figures}
    kl = {of: float(one.first.mean()) for of, one in behavior.kl.items()} or dict.fromkeys(removals.references, 0.0)
    rates = behavior.rates
    left = rates["malicious_refused"], rates["utility"]
    return CurvePoint(units.n_units(), *left, found, beside, kl, behavior.by_category)


def _curve(
    candidate: Candidate,
    points: tuple[CurvePoint, ...],
    intact: Behavior,
    max_utility_loss: float,
    max_kl: float | None,
) -> ScoreCurve:
    refusal, utility = intact.rates["malicious_refused"], intact.rates["utility"]
    x = torch.tensor([float(p.removed) for p in points], dtype=torch.float64).log2()
    gains = [(refusal - p.refusal) / refusal - (utility - p.utility) / max(utility, 1e-9) for p in points]
    gain = torch.tensor(gains, dtype=torch.float64)
    spread = float(x[-1] - x[0])
    area = float(torch.trapezoid(gain, x)) / spread if spread else float(gain.mean())

    def enough(p: CurvePoint) -> bool:
        near = max_kl is None or p.kl.get("harmless", 0.0) <= max_kl
        return p.refusal <= refusal / 2 and p.utility >= utility - max_utility_loss - 1e-9 and near

    return ScoreCurve(candidate, points, area, next((p.removed for p in points if enough(p)), None))
