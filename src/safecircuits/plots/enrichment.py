"""Units of a set by layer against chance: bars by site, the permutations' 95 % as a band."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from safecircuits.base.record import Record, Recorded, bounds, record_of
from safecircuits.plots.style import (
    GROUP_COLORS,
    INK,
    MUTED,
    ORANGE,
    RangeMark,
    axes_or_new,
    layer_axis,
    legend_above,
    mark_ranges,
    styled,
)
from safecircuits.plots.units import SITE_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_enrichment(enrichment: Recorded | Record, *, ax: Axes | None = None) -> Axes:
    """Counts of each layer, stacked by site; layers above chance (q < 0.05) have a star."""
    ax = axes_or_new(ax)
    found = record_of(enrichment)
    group, color = found["group"], GROUP_COLORS.get(found["group"], GROUP_COLORS["SCU"])
    total, expected, q, low, high = (np.asarray(found[key]) for key in ("total", "expected", "q", "low", "high"))
    highest = max(float(total.max()), float(high.max()))
    layers = np.arange(len(total))
    bottom = np.zeros(len(total))
    handles: list[Patch | Line2D] = []
    for (site, counts), alpha in zip(found["counts"].items(), (0.85, 0.45), strict=False):
        ax.bar(layers, counts, 0.78, bottom=bottom, color=color, alpha=alpha)
        bottom += counts
        handles.append(Patch(color=color, alpha=alpha, label=f"{group}, {SITE_NAMES[site]}"))
    # The band belongs to whole layers, so it is drawn over their width.
    edges = np.append(layers - 0.5, len(total) - 0.5)
    low, high, expected = (np.append(values, values[-1]) for values in (low, high, expected))
    ax.fill_between(edges, low, high, step="post", color=MUTED, alpha=0.28, linewidth=0, zorder=0.5)
    for bound in (low, high):  # over the bars, too
        ax.step(edges, bound, where="post", color=MUTED, linewidth=0.8, zorder=3)
    ax.plot(edges, expected, color=INK, linewidth=0.9, zorder=4)
    for layer in layers:
        if q[layer] < 0.05 and total[layer]:
            ax.annotate("*", (layer, float(total[layer])), ha="center", va="bottom", fontsize=10)
    layer_axis(ax, len(total))
    ax.set_ylim(0, 1.12 * highest)
    ax.set_ylabel("units")
    if block := bounds(found["block"]):
        mark_ranges(ax, [RangeMark("safety layers", *block, ORANGE)])
    handles += [
        Line2D([], [], color=INK, linewidth=0.9, label="chance"),
        Patch(color=MUTED, alpha=0.28, label="95 % of permutations"),
    ]
    legend_above(ax, 2, handles=handles)
    return ax
