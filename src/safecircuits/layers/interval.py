"""How sure is a gap curve, and the range read off it? A bootstrap over prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.resamples import DRAWS, RangeResamples, multiplicities
from safecircuits.base.stats import canonical_order, half_width
from safecircuits.base.vocabulary import LayerRange
from safecircuits.hooks.collect import Residuals
from safecircuits.layers.angles import Formula, degrees, require_pairs, unit_vectors
from safecircuits.layers.onset import OnsetRule, find_onset
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class GapInterval(Result):
    """95 % bootstrap interval of the angle gap of each layer, in degrees, and the onset of every resampled curve.

    Examples:
        >>> harmless, harmful = (sc.collect_residuals(model, prompts) for prompts in (normal, malicious))
        >>> found = sc.gap_interval(harmless, harmful, draws=200)
        >>> found.low.shape
        torch.Size([8])
    """

    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    onsets: tuple[LayerRange | None, ...]
    """One a draw; None where the resampled curve has no onset."""

    @property
    def resampled(self) -> RangeResamples:
        """How sure the onset is."""
        return RangeResamples(self.onsets)

    def record(self) -> dict[str, Any]:
        """``low`` and ``high`` by layer, degrees."""
        return {"low": self.low.tolist(), "high": self.high.tolist()}

    def to_frame(self) -> pd.DataFrame:
        """One row a layer."""
        import pandas as pd

        return pd.DataFrame({"layer": range(len(self.low)), "low": self.low.tolist(), "high": self.high.tolist()})


@checked
def gap_interval(
    normal: Residuals,
    malicious: Residuals,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    rule: OnsetRule | None = None,
    formula: Formula = "paper",
) -> GapInterval:
    """Resample the prompts of both sets with replacement and recompute gap and onset, ``draws`` times.

    The gap is that of ``compare`` over all pairs. A prompt that is drawn twice makes no pair with itself: its angle of
    zero would pull the N-N angle down and the gap up.

    Args:
        normal, malicious: from ``collect_residuals``; memory grows with the square of the number of prompts.

    Raises:
        ValueError: for fewer than two prompts in a set, or no draws.

    Examples:
        >>> harmless, harmful = (sc.collect_residuals(model, prompts) for prompts in (normal, malicious))
        >>> found = sc.gap_interval(harmless, harmful, draws=200)
        >>> bool((found.low <= found.high).all()), len(found.onsets)
        (True, 200)
    """
    return interval_of(resampled_gaps(normal, malicious, draws=draws, seed=seed, formula=formula), rule)


def interval_of(gaps: Float[Tensor, "draw layer"], rule: OnsetRule | None = None) -> GapInterval:
    """The interval of curves that ``resampled_gaps`` drew."""
    low, high = torch.quantile(gaps, torch.tensor([0.025, 0.975], dtype=gaps.dtype), dim=0)
    return GapInterval(low, high, resampled_onsets(gaps, rule or OnsetRule()).draws)


def resampled_onsets(gaps: Float[Tensor, "draw layer"], rule: OnsetRule) -> RangeResamples:
    """The onset of every resampled curve, each held against noise as the measured one is."""
    half = half_width(gaps)
    found = [find_onset(curve.tolist(), rule, (curve - half).tolist()) for curve in gaps]
    return RangeResamples(tuple(onset.layers if onset else None for onset in found))


def resampled_gaps(
    normal: Residuals, malicious: Residuals, *, draws: int = DRAWS, seed: int = 0, formula: Formula = "paper"
) -> Float[Tensor, "draw layer"]:
    """The gap curve of each resample, in degrees.

    Which prompts a resample holds depends on ``seed`` and the prompts alone, not on their order: two models asked the
    same prompts get the same resamples, so that their difference, draw by draw, is a paired one.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    if formula not in ("paper", "code"):
        raise ValueError(f"formula is 'paper' or 'code', not {formula!r}")
    require_pairs(normal.prompts, malicious.prompts)
    n, m = (unit_vectors(r.values[:, canonical_order(r.prompts.prompts)]) for r in (normal, malicious))
    generator = torch.Generator().manual_seed(int(seed))
    a, b = (multiplicities(u.shape[1], draws, generator) for u in (n, m))
    pairs = a.sum(1).square() - a.square().sum(1)
    # A draw of one and the same prompt throughout has no pair; it is all but impossible beyond a handful of prompts.
    a, b, pairs = a[pairs > 0], b[pairs > 0], pairs[pairs > 0]
    curves = [_resampled_gap(*layer, a, b, pairs, formula) for layer in zip(n, m, strict=True)]
    return torch.stack(curves, dim=1)


def _resampled_gap(
    n: Float[Tensor, "normal d_model"],
    m: Float[Tensor, "malicious d_model"],
    a: Float[Tensor, "draw normal"],
    b: Float[Tensor, "draw malicious"],
    pairs: Float[Tensor, " draw"],
    formula: Formula,
) -> Float[Tensor, " draw"]:
    """The gap of one layer in each resample, degrees."""
    within, across = n @ n.mT, n @ m.mT
    if formula == "paper":  # the mean of angles; the other is the angle of the mean
        within, across = degrees(within), degrees(across)
    within.fill_diagonal_(0)
    nn = (a @ within * a).sum(1) / pairs
    nm = (a @ across * b).sum(1) / (a.sum(1) * b.sum(1))
    return nm - nn if formula == "paper" else degrees(nm) - degrees(nn)
