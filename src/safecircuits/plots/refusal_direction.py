"""Refusal directions by layer and position, what selection saw of them, and who writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import MUTED, PAPER, axes_or_new, layer_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_lengths(directions: Recorded | Record, ax: Axes | None = None) -> Axes:
    """Length of the difference of means by layer, a line a position, and 95 % of shuffled labels at the last token."""
    ax, record = axes_or_new(ax), record_of(directions)
    lengths, chance = record["length"], record["chance"]
    layers = range(len(lengths))
    for column, position in enumerate(record["positions"]):
        token = repr(record["tokens"][column])
        name = "instruction's last" if column == 0 else f"{position}: {token}"
        ax.plot(layers, [row[column] for row in lengths], "o-", markersize=3, markeredgecolor=PAPER, label=name)
    ax.fill_between(layers, [row[-1] for row in chance], color=MUTED, alpha=0.2, linewidth=0, label="shuffled labels")
    layer_axis(ax, len(lengths))
    ax.set_ylabel("length of the difference of means")
    ax.legend(fontsize=7)
    return ax
