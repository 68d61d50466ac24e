"""The safety landscape of some units beside random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import COLUMN, INK, PAPER, axes_or_new, legend_above, percent_axis, styled

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


@styled
def plot_slice(landscape: Recorded | Record, figure: str, ax: Axes | None = None, *, least: float = 0.5) -> Axes:
    """A share along one direction of all weights, or over two: a map with the line where it is ``least``.

    The unmoved model is marked.
    """
    points = record_of(landscape)["points"]
    ax, name = axes_or_new(ax, (COLUMN[0], 3.1)), f"{figure.replace('_', ' ')} (%)"
    if "b" not in points[0]:
        rows = sorted((point["a"], point[figure]) for point in points)
        ax.plot(*zip(*rows, strict=True), marker="o", markersize=3)
        ax.axhline(least, color="0.5", linewidth=0.8, linestyle=":", zorder=1)
        ax.axvline(0, color="0.5", linewidth=0.8, zorder=1)
        percent_axis(ax, "y", name)
        ax.set_xlabel("distance along the direction")
        return ax
    across, up = (sorted({point[of] for point in points}) for of in ("a", "b"))
    values = np.full((len(up), len(across)), np.nan)
    for point in points:
        values[up.index(point["b"]), across.index(point["a"])] = 100 * point[figure]
    image = ax.pcolormesh(across, up, values, cmap="Blues", vmin=0, vmax=100, shading="nearest")
    if min(values.shape) > 1 and np.nanmin(values) < 100 * least < np.nanmax(values):
        ax.contour(across, up, values, levels=[100 * least], colors=INK, linewidths=0.9)
    ax.plot(0, 0, "o", color=INK, markersize=5, markerfacecolor=PAPER)
    ax.set(xlabel="distance along the first direction", ylabel="along the second")
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label(name)
    return ax
