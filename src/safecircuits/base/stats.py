"""Intervals: for a share, for a mean or a rate over seeds, and for whole curves at once.

A bootstrap of a fixed seed draws its items by number. They are numbered by what they are, not by where the caller has
put them (``canonical_order``), wherever prompts are resampled: prompts in another order get the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def interval_of_rate(rate: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson interval of a rate between 0 and 1 of ``n``.

    Examples:
        >>> from safecircuits.base.stats import interval_of_rate
        >>> [round(end, 3) for end in interval_of_rate(0.5, 40)]
        [0.352, 0.648]
    """
    return Share(round(rate * n), round(n)).interval


@dataclass(frozen=True)
class Share:
    """``hits`` of ``n`` with its 95 % Wilson score interval."""

    hits: int
    n: int

    @classmethod
    def of(cls, verdicts: Bool[Tensor, " prompt"]) -> Share:
        return cls(int(verdicts.sum()), verdicts.numel())

    @property
    def rate(self) -> float:
        """NaN of nothing."""
        return self.hits / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if not self.n:
            return float("nan"), float("nan")
        from scipy.stats import binomtest

        ci = binomtest(self.hits, self.n).proportion_ci(method="wilson")
        return float(ci.low), float(ci.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}] ({self.hits}/{self.n})"


def canonical_order(keys: Sequence[Any]) -> list[int]:
    """How a bootstrap numbers its items: the place of each among those given, sorted by contents or values.

    Items with equal keys must be interchangeable. Where two models are resampled alike, the keys must be of what they
    share, such as the prompts.
    """
    return sorted(range(len(keys)), key=keys.__getitem__)


def mean_interval(
    values: Float[Tensor, " seed"], *, within: tuple[float, float] | None = None
) -> tuple[float, float, float]:
    """Mean over a few independent runs and its 95 % Student-t interval; a single run has no interval (NaN).

    Args:
        within: what the mean can be at all, such as (−1, 1) for a difference of two rates; the interval ends there.
    """
    n = values.numel()
    mean = float(values.double().mean())
    if n < 2:
        return mean, float("nan"), float("nan")
    half = _quantile(n) * _standard_error(values)
    least, most = within or (float("-inf"), float("inf"))
    return mean, max(mean - half, least), min(mean + half, most)


def rate_interval(
    values: Float[Tensor, " seed"], *, within: tuple[float, float] = (0.0, 1.0), trials: int | None = None
) -> tuple[float, float, float]:
    """Mean over runs of a rate, which cannot leave ``within``, and its 95 % interval, which does not either.

    A score interval with Student's t: Wilson's, with as many independent trials as the spread between the runs is worth
    (Korn and Graubard's effective sample size). Its ends are the true rates μ from which the mean is a t quantile of
    standard errors away, where the standard error is as at the mean but for the factor √(μ(1 − μ)) by which that of any
    share varies. Over three and more seeds of beta-distributed rates it covers the true rate as often as Student's
    interval cut off at 0 and 1, or more often, and where rates spread it is narrower.

    However little the runs spread, the interval holds what counting alone leaves open: Clopper and Pearson's for all
    trials together, where it is known how many each rate counts. Where it is not, runs that agree to the last digit
    (three seeds at 0, say) get the interval that makes no assumption at all: the mean that is reached if the rate is
    theirs in a share q of all runs and as far away as it can be in the others, for the smallest q with which k runs
    agree in 2.5 % of cases, q = 0.025^(1/k). For rates of 0 that is Clopper and Pearson's with the runs as trials.

    A single run has no interval (NaN).

    Args:
        values: each between the ends of ``within``.
        within: what a value can be, such as (1, 5) for a mark.
        trials: of how many prompts each value is a share.

    Raises:
        ValueError: for a value outside.
    """
    low, high = within
    outside = values[(values < low - 1e-9) | (values > high + 1e-9)]
    if outside.numel():
        raise ValueError(f"a rate lies between {low:g} and {high:g}, not at {float(outside[0]):g}")
    n = values.numel()
    mean = float(values.double().mean())
    if n < 2:
        return mean, float("nan"), float("nan")
    share = min(max((mean - low) / (high - low), 0.0), 1.0)
    ends = _counted(share, n, trials)
    spread, error = share * (1 - share), _standard_error(values) / (high - low)
    if spread > 0 and error > 1e-9:  # less is rounding
        inflation = (_quantile(n) * error) ** 2 / spread
        center = (share + inflation / 2) / (1 + inflation)
        half = (inflation * spread + inflation**2 / 4) ** 0.5 / (1 + inflation)
        ends = (
            (center - half, center + half)
            if trials is None
            else (min(center - half, ends[0]), max(center + half, ends[1]))
        )
    first, last = (low + (high - low) * min(max(end, 0.0), 1.0) for end in ends)
    return mean, min(first, mean), max(last, mean)


def _counted(share: float, runs: int, trials: int | None) -> tuple[float, float]:
    """What counting alone leaves open of a share that ``runs`` agree on."""
    if trials is None:
        same = 0.025 ** (1 / runs)
        return same * share, 1 - same * (1 - share)
    from scipy.stats import binomtest

    total = runs * trials
    ci = binomtest(round(share * total), total).proportion_ci(method="exact")
    return float(ci.low), float(ci.high)


def simultaneous_band(
    estimate: Float[Tensor, " layer"], draws: Float[Tensor, "draw layer"]
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """A 95 % band that holds a whole curve at once, so that a layer may be picked after seeing it.

    All layers get the same number of their standard errors: the 95 % quantile over draws of the largest deviation of
    any layer (sup-t).

    Args:
        estimate: of each layer.
        draws: the same from bootstrap resamples.
    """
    half = half_width(draws)
    return estimate - half, estimate + half


def half_width(draws: Float[Tensor, "draw layer"]) -> Float[Tensor, " layer"]:
    """Of the band that ``simultaneous_band`` puts around an estimate."""
    error = draws.std(0)
    deviation = (draws - draws.mean(0)).abs()
    largest = torch.where(error > 0, deviation / error, 0.0).amax(1)
    return torch.quantile(largest, 0.95) * error


def _quantile(n: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1))


def _standard_error(values: Float[Tensor, " seed"]) -> float:
    return float(values.double().std()) / math.sqrt(values.numel())
