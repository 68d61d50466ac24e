"""Whether something got worse by more than is tolerated: exact one-sided tests, corrected for their number.

Each test is of "no worse than tolerated" and gives a p-value; where the truth lies just at what is tolerated, the
p-value is below α in at most a share α of cases. ``holm`` keeps that for all tests together. What a test would have
seen is told by ``detectable_change`` and ``detectable_share``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.paired import discordant, sure_below

POWER = 0.8
"""How often a change that counts as detectable is found."""


def fall_p(before: Bool[Tensor, " prompt"], after: Bool[Tensor, " prompt"], tolerated: float = 0.0) -> float:
    """p-value of a share that fell by at most ``tolerated``, counted on the same prompts before and after.

    McNemar's exact one-sided test where nothing is tolerated; the same test's confidence beyond that (Fay and Lumbreras
    2021).

    Examples:
        >>> import torch
        >>> before, after = torch.tensor([True] * 100), torch.tensor([True] * 90 + [False] * 10)
        >>> fall_p(before, after) == 0.5**10, fall_p(before, after, tolerated=0.1) > 0.3
        (True, True)
    """
    fell, rose = discordant(before, after)
    return _fall_p(fell, rose, len(before), tolerated)


def _fall_p(fell: int, rose: int, n: int, tolerated: float) -> float:
    if not tolerated:  # the same to rounding, which a p-value of 1e-20 would not survive
        from scipy.stats import binom

        return float(binom.cdf(rose, fell + rose, 0.5)) if fell else 1.0
    return 1.0 - sure_below(-tolerated, rose, fell, n)


def below_p(hits: int, n: int, bound: float) -> float:
    """p-value of a share that is at least ``bound``, of which ``hits`` of ``n`` were counted."""
    from scipy.stats import binom

    return float(binom.cdf(hits, n, bound))


def above_p(hits: int, n: int, bound: float) -> float:
    """p-value of a share that is at most ``bound``."""
    return below_p(n - hits, n, 1 - bound)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down, in the order in which they were given.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def detectable_change(n: int, tolerated: float, level: float) -> float | None:
    """The fall that ``n`` prompts show in 80 % of cases at ``level``; None if they cannot show any.

    Of prompts that change in one way alone; where some change the other way, more is needed.

    Examples:
        >>> round(detectable_change(200, tolerated=0.0, level=0.01), 3)
        0.045
    """
    fewest = _first(range(1, n + 1), lambda fell: _fall_p(fell, 0, n, tolerated) <= level)
    return None if fewest is None else _reached(fewest, n)


def detectable_share(n: int, bound: float, level: float) -> float | None:
    """The share above ``bound`` that ``n`` prompts show to be above it in 80 % of cases; None if they cannot.

    Examples:
        >>> round(detectable_share(100, bound=0.1, level=0.05), 2)
        0.19
    """
    fewest = _first(range(1, n + 1), lambda hits: above_p(hits, n, bound) <= level)
    return None if fewest is None else _reached(fewest, n)


def _reached(fewest: int, n: int) -> float:
    """The share of which ``n`` draws have at least ``fewest`` in 80 % of cases."""
    from scipy.stats import beta

    return float(beta.ppf(POWER, fewest, n - fewest + 1))


def _first(counts: range, enough: Callable[[int], bool]) -> int | None:
    """The first count that is enough, of which all larger ones are, too."""
    low, high = counts.start, counts.stop
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low if low < counts.stop else None
