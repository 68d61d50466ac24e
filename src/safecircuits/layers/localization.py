"""Locate the safety layers: scale a candidate block, count over-rejections, move its bounds to the extreme (§3.4).

Scaling a block up by α > 1 strengthens what it does. If that is refusing, refusals of harmless prompts that merely
sound dangerous grow with every safety layer the block takes in, and fall again with every other layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch

from safecircuits.base.arguments import checked
from safecircuits.base.paired import LEVEL, paired_difference
from safecircuits.base.resamples import RangeResamples
from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.by_category import points_by_category
from safecircuits.layers.choice import (
    NOTHING_MOVED,
    against_unscaled,
    best_against,
    moves,
    resampled_best,
    rivals_of,
    tell_if_nothing_can_move,
)
from safecircuits.layers.counting import CountingOptions, RefusalCounter, checked_alpha
from safecircuits.layers.decision import DecisionLayers
from safecircuits.layers.onset import Onset
from safecircuits.layers.sweep_point import SweepPoint, counted
from safecircuits.model.sites import HookedModel, require_hooked
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Direction = Literal["up", "down"]

# The paper's search (A.3.4): steps of 0.05 until the sample standard deviation of the upper-bound counts reaches 15 to
# 20 of 721 prompts; 2.1 % is the lower end.
ALPHA_STEP = 0.05
ALPHA_STEPS = 10
MIN_SPREAD = 0.021
MAX_DEGENERATE = 0.10


@dataclass(frozen=True)
class Sweep:
    """One bound moved with the other fixed; ``best`` has the extreme count, the first in layer order among equals.

    Examples:
        >>> found = sc.localize(model, over_rejection, (3, 4), alpha=1.2)
        >>> found.lower.bound, found.lower.best.layers
        ('lower', LayerRange(first=..., last=...))
    """

    bound: Literal["upper", "lower"]
    points: tuple[SweepPoint, ...]
    direction: Direction

    @property
    def best(self) -> SweepPoint:
        extreme = max if self.direction == "up" else min
        return extreme(self.points, key=lambda point: point.count)

    @property
    def spread(self) -> float:
        """Sample standard deviation of the counts, in prompts (ddof 1); 0 for a single point."""
        counts = torch.tensor([float(point.count) for point in self.points], dtype=torch.float32)
        return float(counts.std()) if len(counts) > 1 else 0.0

    @cached_property
    def rivals(self) -> tuple[SweepPoint, ...]:
        """Other points that may as well have the extreme count (``base.paired.rivals``)."""
        return rivals_of(self.best, self.points)


@dataclass(frozen=True)
class Localization(Result):
    """What ``localize`` found: the located block, and every count that led to it.

    Examples:
        >>> found = sc.localize(model, over_rejection, (3, 4), alpha=1.2)
        >>> found.layers
        LayerRange(first=..., last=...)
        >>> found.upper.points[0].layers
        LayerRange(first=3, last=3)
    """

    layers: LayerRange
    alpha: float
    direction: Direction
    baseline: SweepPoint
    upper: Sweep
    lower: Sweep
    alpha_trials: tuple[Sweep, ...]
    """Upper-bound sweeps of the α search, in order; empty if α was given."""
    alpha_found: bool
    """False if the α search ended without the spread it looks for; ``alpha`` is then the widest-spread trial's."""
    provenance: dict[str, Any]

    @property
    def alpha_searched(self) -> bool:
        """Whether α was looked for, and not given."""
        return bool(self.alpha_trials) or not self.alpha_found

    @property
    def tried(self) -> tuple[SweepPoint, ...]:
        """Every configuration that was counted on the way, each once: the block is the best of these."""
        sweeps = (*self.alpha_trials, self.upper, self.lower)
        return tuple({(p.layers, p.alpha): p for sweep in sweeps for p in sweep.points}.values())

    @cached_property
    def p(self) -> float:
        """p-value of the block against scaling nothing: exact, and corrected for all that was tried (``chosen_p``)."""
        return best_against(self.lower.best, self.tried, self.baseline)

    @property
    def located(self) -> bool:
        """Whether scaling the block moves refusals the way α should, beyond what the best of so many does by chance.

        Otherwise ``layers`` is where a search had to end, and no finding.
        """
        return self.p < LEVEL and moves(self.lower.best, self.baseline, self.direction == "up")

    @property
    def within_noise(self) -> bool:
        """Whether the block is not told apart: from another one of its sweeps, or from scaling nothing at all."""
        return not self.located or bool(self.upper.rivals or self.lower.rivals)

    @cached_property
    def resampled(self) -> RangeResamples:
        """How sure the bounds are: those of extreme counts when prompts are resampled.

        The lower bound's sweep was run at the upper bound that was found, and is what a resample's is chosen from.
        """
        up = self.direction == "up"
        lows, highs = (resampled_best(sweep.points, up) for sweep in (self.lower, self.upper))
        ends = [(low.layers, high.layers) for low, high in zip(lows, highs, strict=True)]
        return RangeResamples(tuple(LayerRange(a.first, max(a.first, b.last)) for a, b in ends if a and b))

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        block = f"layers {self.layers} at alpha {self.alpha:g} ({self.resampled.words(self.layers)}): "
        block += counted(self.lower.best, self.baseline)
        best, up = self.lower.best, self.direction == "up"
        if nothing := against_unscaled(self.p, len(self.tried), moves(best, self.baseline, up), up):
            return f"{block}; {nothing}"
        rivals = [str(p.layers) for p in {id(p): p for p in (*self.upper.rivals, *self.lower.rivals)}.values()]
        return f"{block}; within noise of {', '.join(rivals)}" if rivals else f"{block}; apart from its neighbours"

    @property
    def caveat(self) -> str:
        """What to hold against it first; empty if the block is sure."""
        if not self.located:
            return NOTHING_MOVED.format(layers=self.layers)
        if self.within_noise:
            return f"layers {self.layers} are one of several blocks that did as well, within noise"
        return self.resampled.doubt(self.layers)

    def to_frame(self) -> pd.DataFrame:
        """One row a configuration: bound, range, count, its paired difference to the unscaled model in prompts, and the
        shares of answers that are degenerate or were ended by the limit of tokens."""
        import pandas as pd

        rows = []
        for sweep in (self.upper, self.lower):
            for point in sweep.points:
                assert point.layers is not None
                mean, low, high = paired_difference(point.refused, self.baseline.refused)
                n = len(point.refused)
                rows.append(
                    {
                        "bound": sweep.bound,
                        "first": point.layers.first,
                        "last": point.layers.last,
                        "refused": point.count,
                        "change": round(mean * n),
                        "change_low": round(low * n, 1),
                        "change_high": round(high * n, 1),
                        "degenerate": point.degenerate,
                        "best": point is sweep.best,
                        **point.record(),
                    }
                )
        return pd.DataFrame(rows)

    def categories(self) -> pd.DataFrame:
        """One row a configuration, unscaled first, and category of its prompts; none without categories."""
        sweeps = [({"bound": sweep.bound}, point) for sweep in (self.upper, self.lower) for point in sweep.points]
        return points_by_category([({"bound": "unscaled"}, self.baseline), *sweeps], "over_rejection")

    def record(self) -> dict[str, Any]:
        """The counts of both sweeps with what they are held against."""
        rows = self.to_frame().to_dict("records")
        return {
            "alpha": self.alpha,
            "direction": self.direction,
            "baseline_refused": self.baseline.count,
            "n_prompts": len(self.baseline.refused),
            "layers": list(self.layers),
            "resamples": self.resampled.record(self.layers),
            **self.baseline.record(),
            "upper": [row for row in rows if row["bound"] == "upper"],
            "lower": [row for row in rows if row["bound"] == "lower"],
            "located": self.located,
            "within_noise": self.within_noise,
            "verdict": self.verdict,
            "alpha_found": self.alpha_found if self.alpha_searched else None,
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Both sweeps: refusals against the moving bound."""
        from safecircuits.plots.layers import plot_sweeps

        return plot_sweeps(self, ax=ax)


@checked
def localize(
    model: HookedModel,
    over_rejection: PromptSet | Sequence[str],
    start: Onset | DecisionLayers | LayerRange | Sequence[int] | None,
    *,
    alpha: float | Literal["search"] = 1.1,
    direction: Direction | None = None,
    reach: int = 2,
    progress: bool = False,
    **counting: Unpack[CountingOptions],
) -> Localization:
    """Locate the safety layers by scaling weights and counting over-refusals (Safety Layers §3.4.3).

    From ``start``, the upper bound of the block is moved first, then the lower one.

    Each bound is moved by up to ``reach`` layers to both sides and every position is counted (the counts are not
    unimodal, so climbing could stop early). The extreme is the largest count for α > 1, the smallest for α < 1.

    Args:
        over_rejection: harmless prompts that sound dangerous.
        start: ``LayerGap.onset()``; where the gap has none, ``decision_layers(model, normal, malicious)``; or a
            (first, last) range of your own, 0-indexed and inclusive.
        alpha: a number, or ``"search"``: steps of 0.05 from 1 until the sample standard deviation over the upper-bound
            sweep reaches 2.1 % of the prompts (A.3.4). The search stops, too, when more than a tenth of the
            completions are degenerate, or are no language to the unscaled model (``behavior.coherence``): the model is
            then broken, not more careful.
        direction: of the search: ``"up"`` (α > 1, the default) or ``"down"``. A given α has its own.
        counting: components, detector, max_new_tokens, template, early_stop, ``ordinary`` prompts for the KL, and
            ``resume``, a file in which finished configurations are kept, so that an interrupted search goes on from
            them; see ``RefusalCounter``.

    Raises:
        ValueError: without a start, for a range outside the model, and for an α that is not positive or equals 1.

    Warns:
        Notice: if the unscaled model refuses all prompts or none, before anything is scaled.

    Examples:
        >>> gap = sc.layer_gap(model, normal, malicious)
        >>> found = sc.localize(model, over_rejection, gap.onset(), alpha=1.2)
        >>> found.layers
        LayerRange(first=..., last=...)
    """
    require_hooked(model, "localizing safety layers")
    n_layers = int(model.cfg.n_layers)
    block = _start(start, n_layers)
    if reach < 1:
        raise ValueError(f"reach must be at least 1 layer, not {reach}")
    if alpha == "search":
        toward: Direction = direction or "up"
    else:
        alpha = checked_alpha(alpha, "; or 'search'")
        toward = "up" if alpha > 1 else "down"
        if direction not in (None, toward):
            raise ValueError(f"alpha {alpha} scales {toward}; direction={direction!r} contradicts it")
    prompts = as_prompt_set(over_rejection, "over-rejection")
    counter = RefusalCounter(model, prompts, **counting)
    tell_if_nothing_can_move(counter.baseline, toward == "up")

    def sweep(bound: Literal["upper", "lower"], fixed: LayerRange, value: float) -> Sweep:
        if bound == "upper":
            lasts = range(max(fixed.first, fixed.last - reach), min(n_layers - 1, fixed.last + reach) + 1)
            ranges = [LayerRange(fixed.first, last) for last in lasts]
        else:
            firsts = range(max(0, fixed.first - reach), min(fixed.last, fixed.first + reach) + 1)
            ranges = [LayerRange(first, fixed.last) for first in firsts]
        what = f"{bound} bound, alpha {value:g}"
        points = counter.count_all([(r, value) for r in ranges], what=what, progress=progress)
        return Sweep(bound, tuple(points), toward)

    trials: list[Sweep] = []
    found = True
    if alpha == "search":
        alpha, found = _search_alpha(
            lambda value: sweep("upper", block, value), counter.incoherent, toward, len(prompts), trials
        )
    upper = sweep("upper", block, alpha)
    assert upper.best.layers is not None
    lower = sweep("lower", upper.best.layers, alpha)
    assert lower.best.layers is not None
    provenance = {**counter.provenance, "start": [block.first, block.last], "reach": reach}
    return Localization(
        lower.best.layers, alpha, toward, counter.baseline, upper, lower, tuple(trials), found, provenance
    )


def _start(start: Onset | DecisionLayers | LayerRange | Sequence[int] | None, n_layers: int) -> LayerRange:
    if start is None:
        raise ValueError(
            "there is no range to start from: the gap curve has no onset; start from "
            "decision_layers(model, normal, malicious), or give start=(first, last)"
        )
    if isinstance(start, DecisionLayers) and start.layers is None:
        raise ValueError(f"there is no range to start from: {start.verdict}; so there is no refusal to locate")
    found = start.layers if isinstance(start, Onset | DecisionLayers) else start
    assert found is not None
    return LayerRange.of(found, n_layers)


def _search_alpha(
    sweep_at: Callable[[float], Sweep],
    incoherent: Callable[[SweepPoint], float],
    direction: Direction,
    n_prompts: int,
    trials: list[Sweep],
) -> tuple[float, bool]:
    sign = 1 if direction == "up" else -1
    for step in range(1, ALPHA_STEPS + 1):
        alpha = round(1 + sign * step * ALPHA_STEP, 4)
        trial = sweep_at(alpha)
        if any(point.degenerate > MAX_DEGENERATE or incoherent(point) > MAX_DEGENERATE for point in trial.points):
            break
        trials.append(trial)
        if trial.spread >= MIN_SPREAD * n_prompts:
            return alpha, True
    if not trials:
        return round(1 + sign * ALPHA_STEP, 4), False
    return max(trials, key=lambda t: t.spread).points[0].alpha, False
