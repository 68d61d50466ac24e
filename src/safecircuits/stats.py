"""Intervals: for a share, for a paired difference of shares, for a mean over seeds.

A bootstrap of a fixed seed draws its items by number. They are numbered by what they are, not by where the caller has
put them (``canonical_order``), here and wherever prompts are resampled: prompts in another order get the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor


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


def paired_difference(
    a: Bool[Tensor, " prompt"], b: Bool[Tensor, " prompt"], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a − b over the same prompts, and its 95 % bootstrap interval (prompts resampled in pairs)."""
    difference = np.sort(a.double().numpy() - b.double().numpy())
    picks = np.random.default_rng(seed).integers(0, len(difference), (draws, len(difference)))
    low, high = np.quantile(difference[picks].mean(axis=1), [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def mean_interval(values: Float[Tensor, " seed"]) -> tuple[float, float, float]:
    """Mean over a few independent runs and its 95 % Student-t interval; a single run has no interval (NaN)."""
    n = values.numel()
    mean = float(values.double().mean())
    if n < 2:
        return mean, float("nan"), float("nan")
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * float(values.double().std()) / n**0.5
    return mean, mean - half, mean + half
