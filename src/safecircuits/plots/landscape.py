"""The safety landscape of some units beside random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import COLUMN, axes_or_new, legend_above, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {"units": "these units", "random": "random units, equal norm"}


@styled
def plot_slices(study: Recorded | Record, ax: Axes | None = None) -> Axes:
    """A figure along slices through the weights: mean over draws with 95 % intervals, and where the basin ends."""
    record = record_of(study)
    ax = axes_or_new(ax, (COLUMN[0], 3.1))
    for of, rows in record["slices"].items():
        at = [row["a"] for row in rows]
        (line,) = ax.plot(at, [row["mean"] for row in rows], marker="o", markersize=3, label=LABELS[of])
        low, high = ([row[end] if row[end] == row[end] else row["mean"] for row in rows] for end in ("low", "high"))
        ax.fill_between(at, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.axhline(record["least"], color="0.5", linewidth=0.8, linestyle=":", zorder=1)
    percent_axis(ax, "y", f"{record['figure'].replace('_', ' ')} (%)")
    ax.set_xlabel("distance, in norms of the weights' rows")
    legend_above(ax, len(record["slices"]))
    return ax
