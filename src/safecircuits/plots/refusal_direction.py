"""Refusal directions by layer and position, what selection saw of them, and who writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import MUTED, PAPER, VERMILLION, axes_or_new, layer_axis, styled

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


@styled
def plot_bypass(direction: Recorded | Record, ax: Axes | None = None) -> Axes:
    """Refusal score of harmful prompts without each candidate, by layer; dotted is the intact model's, starred the
    chosen one, and grey are random directions in its place.
    """
    ax, record = axes_or_new(ax), record_of(direction)
    bypass = record["bypass"]
    for column, position in enumerate(record["positions"]):
        values = [float(row[column]) for row in bypass]
        if any(value == value for value in values):
            name = f"{position}: {record['tokens'][column]!r}"
            ax.plot(range(len(values)), values, "o-", markersize=3, markeredgecolor=PAPER, label=name)
    ax.axhline(record["baseline"]["harmful"], color=MUTED, linestyle=":", linewidth=0.8)
    if record["layer"] is not None:
        ax.plot([record["layer"]], [record["chosen"]["bypass"][0]], "*", markersize=11, color=VERMILLION, zorder=5)
        for values in record["controls"].values():
            ax.plot([record["layer"]] * len(values), [row[0] for row in values], "_", color=MUTED)
    layer_axis(ax, len(bypass))
    ax.set_ylabel("refusal score without it (log odds)")
    ax.legend(fontsize=7)
    return ax
