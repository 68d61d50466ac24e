"""The whole grid of scaled blocks as a heat map: how many over-rejections each first and last layer gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import INK, PAPER, axes_or_new, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_grid(grid: Recorded | Record, *, ax: Axes | None = None) -> Axes:
    """Refusals against the unscaled model's, by first (row) and last (column) layer of the scaled block.

    Brown is more refusals than unscaled, purple fewer. The large mark is the extreme, the small ones are the blocks
    that are within noise of it.
    """
    record = record_of(grid)
    counts, unscaled = np.asarray(record["counts"]), record["baseline_refused"]
    change = np.where(counts >= 0, counts - unscaled, np.nan)
    ax = axes_or_new(ax, size=(3.6, 3.0))
    largest = max(float(np.nanmax(np.abs(change))), 1.0)
    image = ax.imshow(change, cmap="PuOr_r", vmin=-largest, vmax=largest, origin="upper")
    for (first, last), size in ((record["best"], 7.5), *((rival, 3.0) for rival in record["rivals"])):
        ax.plot(last, first, "o", color=INK, markersize=size, markerfacecolor=PAPER)
    ax.set(xlabel="last layer of the block", ylabel="first layer of the block")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.set_label(f"refused, minus {unscaled} unscaled (of {record['n_prompts']})")
    return ax
