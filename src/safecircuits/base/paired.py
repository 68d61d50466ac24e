"""Counts of the same prompts under two and more configurations: exact tests, and what choosing the best does to them.

Two configurations are compared by the exact McNemar test: of the prompts whose verdict differs, as many should go one
way as the other. Whoever tries k configurations and reports the best has k chances of a small p-value. ``chosen_p`` and
``rivals`` are corrected for that by the distribution of the smallest p-value (min-p, Westfall and Young 1993) when
the signs of all differences of a prompt are flipped together, at random over prompts. Neighbouring blocks flip mostly
the same prompts; keeping a prompt's differences together keeps that correlation, which Holm's and Bonferroni's
corrections have to ignore, and twenty copies of one block cost no more than the block. With a single configuration it
is the exact test itself.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEVEL = 0.05
"""Two-sided: what has a larger p-value is within noise."""

DRAWS = 1999
_GRID = 256


def paired_p(a: Bool[Tensor, " prompt"], b: Bool[Tensor, " prompt"]) -> float:
    """Two-sided p-value of the exact McNemar test; 1 where no verdict differs.

    Examples:
        >>> import torch
        >>> a = torch.tensor([True] * 4 + [False] * 296)
        >>> paired_p(a, torch.zeros_like(a))  # four of 300 change, all one way
        0.125
    """
    up, down = discordant(a, b)
    return float(_exact_p(np.array([up + down]), np.array([min(up, down)]))[0])


def paired_difference(a: Bool[Tensor, " prompt"], b: Bool[Tensor, " prompt"]) -> tuple[float, float, float]:
    """Mean of a − b over the same prompts, and its exact 95 % interval.

    The interval is that of Fay and Lumbreras (2021): it melds the Clopper-Pearson limits of how many prompts differ and
    of how many of these go one way. It holds 0 exactly where ``paired_p`` is at least 5 %, stays within −1 to 1, and
    has a width where no prompt differs, too.
    """
    up, down = discordant(a, b)
    n = len(a)
    high = _upper_limit(up, down, n)
    low = -_upper_limit(down, up, n)
    return (up - down) / n, low, high


def chosen_p(
    chosen: int, candidates: Bool[Tensor, "config prompt"], reference: Bool[Tensor, " prompt"], *, seed: int = 0
) -> float:
    """p-value of one of ``candidates`` against ``reference``, however it was chosen among them.

    Args:
        chosen: its row.
        candidates: the verdicts of every configuration that was looked at, the chosen one among them.
        reference: of the same prompts, with nothing done.
        seed: of the sign flips; the order of the prompts does not matter.

    Returns:
        The probability that the smallest p-value of all candidates is as small by chance; for a single candidate the
        exact p-value itself. It is never below 1/2000 otherwise, which 1999 flips cannot tell from 0.
    """
    difference = candidates.numpy().astype(np.int8) - reference.numpy().astype(np.int8)
    size = np.abs(difference).sum(1)
    p = _exact_p(size, (size - np.abs(difference.sum(1, dtype=int))) // 2)
    if len(difference) == 1:
        return float(p[0])
    sums = np.abs(_flipped(difference, seed))
    drawn = _table(size)[size, (size - sums) // 2].min(1)
    return max(float(p[chosen]), _share_at_most(drawn, p[chosen]))


def rivals(best: int, verdicts: Bool[Tensor, "config prompt"], *, seed: int = 0) -> tuple[int, ...]:
    """The other configurations that may as well be the best: with ``best`` they hold the true best in 95 % of cases.

    A configuration is left out if the one that came out best lies too far from it for the best of all the others to do
    so by chance (multiple comparisons with the best, Hsu 1984).
    """
    rows = verdicts.numpy().astype(np.int8)
    size = np.array([np.abs(rows - row).sum(1) for row in rows])
    apart = np.abs(rows.sum(1, dtype=int)[:, None] - rows.sum(1, dtype=int))
    p = _exact_p(size[best], (size[best] - apart[best]) // 2)
    # The corrected p-value lies between the plain one and its Bonferroni bound; only what these leave open is drawn.
    unsure = {int(j) for j in np.flatnonzero((p < LEVEL) & (p * (len(rows) - 1) >= LEVEL))}
    if unsure:
        sums, table = _flipped(rows, seed), _table(size)
    found = []
    for other in range(len(rows)):
        if other == best:
            continue
        if other in unsure:
            distance = np.abs(sums - sums[:, [other]])
            drawn = table[size[other], (size[other] - distance) // 2].min(1)
            together = max(float(p[other]), _share_at_most(drawn, p[other]))
        else:
            together = float(p[other]) if p[other] >= LEVEL else 0.0
        if together >= LEVEL:
            found.append(other)
    return tuple(found)


def discordant(a: Bool[Tensor, " prompt"], b: Bool[Tensor, " prompt"]) -> tuple[int, int]:
    """Prompts that only ``a`` has, and those that only ``b`` has."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired counts are of the same prompts, at least one; got {len(a)} and {len(b)} verdicts")
    return int((a & ~b).sum()), int((~a & b).sum())


def _exact_p(size: Int[np.ndarray, "*test"], fewer: Int[np.ndarray, "*test"]) -> Float[np.ndarray, "*test"]:
    """Two-sided binomial p-value of ``fewer`` of ``size`` on the rarer side."""
    from scipy.stats import binom

    p: np.ndarray = np.minimum(1.0, 2 * binom.cdf(fewer, size, 0.5))
    return p


def _table(size: Int[np.ndarray, "*pair"]) -> Float[np.ndarray, "size fewer"]:
    """Exact p-values of every number of differing prompts that occurs, by how many are on the rarer side."""
    most = int(size.max())
    table = np.ones((most + 1, most // 2 + 1))
    for n in np.unique(size):
        table[n, : n // 2 + 1] = _exact_p(np.full(n // 2 + 1, n), np.arange(n // 2 + 1))
    return table


def _flipped(rows: Int[np.ndarray, "config prompt"], seed: int) -> Int[np.ndarray, "draw config"]:
    """Sums over prompts when each prompt's column gets a random sign; of columns that are not all equal."""
    moving = rows[:, (rows != rows[:1]).any(0) | (rows != 0).any(0)]
    moving = moving[:, np.lexsort(moving)]  # by what they are, not by where the caller has put them
    signs = np.random.default_rng(seed).integers(0, 2, (DRAWS, moving.shape[1])) * 2 - 1
    sums: np.ndarray = np.rint(signs.astype(np.float32) @ moving.T.astype(np.float32)).astype(np.int64)
    return sums


def _share_at_most(drawn: Float[np.ndarray, " draw"], observed: float) -> float:
    return (1 + int((drawn <= observed * (1 + 1e-9)).sum())) / (len(drawn) + 1)


@functools.lru_cache(maxsize=4096)
def _upper_limit(up: int, down: int, n: int) -> float:
    """Upper 97.5 % limit of the difference (up − down) / n."""
    from scipy.optimize import brentq
    from scipy.stats import beta

    if not down and up == n:
        return 1.0

    def below(limit: float) -> float:
        return sure_below(limit, up, down, n)

    negative = down and beta.cdf(0.5, up + 1, down) > 0.975
    low, high = (-1.0, 0.0) if negative else (0.0, 1.0)
    if below(high) <= 0.975:
        return high
    return float(brentq(lambda limit: below(limit) - 0.975, low, high, xtol=1e-6))


def sure_below(limit: float, up: int, down: int, n: int) -> float:
    """How sure it is that the difference, prompts that differ times where these go, is at most ``limit``.

    Of ``n`` prompts ``up`` differ one way and ``down`` the other; at 0 it is 1 minus the p-value of McNemar's one-sided
    exact test (Fay and Lumbreras 2021).
    """
    from scipy.stats import beta

    size, q = up + down, (np.arange(_GRID) + 0.5) / _GRID
    if limit > 0:
        differing = np.ones(_GRID) if size == n else beta.ppf(q, size + 1, n - size)
    else:  # largest for the fewest that differ
        differing = np.zeros(_GRID) + 1e-12 if not size else beta.ppf(q, size, n - size + 1)
    way = np.clip((1 + limit / differing) / 2, 0, 1)
    return float(np.mean(way >= 1 if not down else beta.cdf(way, up + 1, down)))
