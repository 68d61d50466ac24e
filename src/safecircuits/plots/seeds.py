"""A rate along an axis over seeds: the mean with its interval, and a thin line a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from safecircuits.base.stats import interval_of_rate, rate_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def interval_over_seeds(values: Sequence[float], trials: int | None) -> tuple[float, float] | None:
    """The 95 % interval of a mean rate (``rate_interval``); of one seed Wilson's over prompts, None without a number.

    Args:
        values: a share each.
        trials: of how many prompts each is.

    Examples:
        >>> from safecircuits.plots.seeds import interval_over_seeds
        >>> [round(end, 2) for end in interval_over_seeds([0.5, 0.7, 0.6], 50)]
        [0.36, 0.8]
        >>> interval_over_seeds([0.5], None) is None
        True
    """
    if len(values) > 1:
        _, low, high = rate_interval(torch.tensor(values, dtype=torch.float64), trials=trials)
        return low, high
    return interval_of_rate(values[0], trials) if trials else None


def draw_over_seeds(
    ax: Axes,
    seeds: Sequence[tuple[Sequence[float], Sequence[float]]],
    label: str,
    trials: int | None = None,
    *,
    control: bool = False,
) -> None:
    """One thick line for the mean with intervals through its marks, and a thin line a seed where there are several.

    Args:
        seeds: of each seed the places and the rates there; compared as far as the shortest of them goes.
        trials: of how many prompts each rate is a share.
        control: dashed, since it is what the others are compared with.
    """
    n = min(len(places) for places, _ in seeds)
    at = [sum(places[i] for places, _ in seeds) / len(seeds) for i in range(n)]
    rates = [[values[i] for _, values in seeds] for i in range(n)]
    mean = [sum(values) / len(values) for values in rates]
    style = (0, (3, 1.5)) if control else "-"
    (line,) = ax.plot(at, mean, marker="o", markersize=3, label=label, linestyle=style, zorder=4)
    for place, values in zip(at, rates, strict=True):
        if ends := interval_over_seeds(values, trials):
            ax.vlines(place, *ends, color=line.get_color(), linewidth=1.2, alpha=0.6, zorder=3)
    for places, each in seeds if len(seeds) > 1 else ():
        ax.plot(places, each, color=line.get_color(), linewidth=0.6, alpha=0.4, zorder=2, label="_seed")
