"""Figures of unit scores: how soon each takes refusal, how stable the groups are, and where the highest units lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import (
    BLUE,
    COLUMN,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    axes_or_new,
    legend_above,
    percent_axis,
    readable,
    styled,
)
from safecircuits.plots.units import SITE_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CYCLE = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY, INK, MUTED)
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


@styled
def plot_score_comparison(
    comparison: Recorded | Record, methods: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Refusal (solid) and utility (dashed) left against the number of removed units, the best curve of each method.

    Bands are 95 % Wilson intervals of the refusal rate over prompts.

    Args:
        methods: those to show; every method that was compared, best first, unless given.

    Raises:
        ValueError: for a method that was not compared.
    """
    ax = axes_or_new(ax)
    record = record_of(comparison)
    ranked: list[Record] = list(record["curves"])
    names = methods or list(dict.fromkeys(curve["method"] for curve in ranked))
    if unknown := set(names) - {curve["method"] for curve in ranked}:
        raise ValueError(f"none of {', '.join(sorted(unknown))} was compared")
    curves = [next(curve for curve in ranked if curve["method"] == name) for name in names]
    intact = record["intact"]
    for i, curve in enumerate(curves):
        x = [0, *curve["removed"]]
        color, marker = _CYCLE[i % len(_CYCLE)], _MARKERS[i % len(_MARKERS)]
        refusal, utility = [intact["malicious_refused"], *curve["refusal"]], [intact["utility"], *curve["utility"]]
        if ends := curve.get("refusal_interval"):
            low, high = zip(*ends, strict=True)
            ax.fill_between(curve["removed"], low, high, color=color, alpha=0.1, linewidth=0)
        ax.plot(x, refusal, color=color, marker=marker, label=curve["label"], markersize=4)
        ax.plot(x, utility, color=color, linestyle=(0, (3, 2)), linewidth=1, label="_utility")
    ax.set_xscale("symlog", linthresh=1, linscale=0.4)
    counts = [0, *curves[0]["removed"]]
    ax.set_xticks(counts, readable(ax, counts, [str(count) for count in counts]))
    ax.set_xticks([], minor=True)
    ax.set_xlabel("units removed (dashed: utility)")
    percent_axis(ax)
    legend_above(ax, 1)
    return ax


@styled
def plot_stability(stability: Recorded | Record, group: str = "SCU", *, ax: Axes | None = None) -> Axes:
    """Jaccard overlap of a group between calibration sets, in percent, as a matrix.

    The title has the mean over pairs with its 95 % interval over calibration sets, and what chance gives.

    Raises:
        ValueError: for an unknown group.
    """
    record = record_of(stability)
    if group not in record["jaccard"]:
        raise ValueError(f"no group {group!r}; there are {', '.join(record['jaccard'])}")
    values, names = np.asarray(record["jaccard"][group]), record["names"]
    n = len(names)
    ax = axes_or_new(ax, (1.2 + 0.6 * n, 1.2 + 0.6 * n))
    ax.imshow(values, vmin=0, vmax=1, cmap="Blues", alpha=0.75)
    for i in range(n):
        for j in range(n):
            ax.text(j, i, f"{100 * float(values[i, j]):.0f}", ha="center", va="center_baseline", fontsize=7.5)
    ax.set_xticks(range(n), names, rotation=45, ha="right")
    ax.set_yticks(range(n), names)
    ax.tick_params(length=0)
    ax.grid(False)
    mean, low, high = (100 * record["means"][group][name] for name in ("mean", "low", "high"))
    interval = f" [{low:.0f}, {high:.0f}]" if low == low else ""
    chance = 100 * record["chance"][group]
    ax.set_title(f"{group}: Jaccard overlap (%)\nmean {mean:.0f}{interval}, by chance {chance:.1f}")
    return ax


@styled
def plot_score_map(scores: Recorded | Record, *, ax: Axes | None = None) -> Axes:
    """Where the highest units lie: their number by layer, one line a site; dotted, what chance puts into each layer.

    Args:
        scores: ``UnitScores``, of which a hundredth of the units is taken, or ``UnitScores.record(n)``.
    """
    ax = axes_or_new(ax, COLUMN)
    record = record_of(scores)
    for i, (site, counts) in enumerate(record["counts"].items()):
        ax.plot(range(len(counts)), counts, color=_CYCLE[i], marker=_MARKERS[i], label=SITE_NAMES[site])
        if expected := record.get("expected"):
            ax.axhline(expected[site], color=_CYCLE[i], linewidth=0.9, linestyle=":", zorder=1)
    ax.set(xlabel="layer", ylabel=f"of the {record['n']} highest by {record['method']}")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(True, axis="y")
    legend_above(ax, 2)
    return ax
