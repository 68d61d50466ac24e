"""Refusal directions by layer and position, what selection saw of them, and who writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import MUTED, PAPER, VERMILLION, axes_or_new, layer_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


@styled
def plot_lengths(directions: Recorded | Record, ax: Axes | None = None) -> Axes:
    """Length of the difference of means by layer, a line a position, and 95 % of shuffled labels at the last token.

    Bands are 95 % of resampled prompts, by how far their differences reach along the direction.
    """
    ax, record = axes_or_new(ax), record_of(directions)
    lengths, chance = record["length"], record["chance"]
    layers = range(len(lengths))
    for column, position in enumerate(record["positions"]):
        token = repr(record["tokens"][column])
        name = "instruction's last" if column == 0 else f"{position}: {token}"
        length = [row[column] for row in lengths]
        (line,) = ax.plot(layers, length, "o-", markersize=3, markeredgecolor=PAPER, label=name)
        _band(ax, line, [row[column] for row in record.get("interval", ())])
    ax.fill_between(layers, [row[-1] for row in chance], color=MUTED, alpha=0.2, linewidth=0, label="shuffled labels")
    layer_axis(ax, len(lengths))
    ax.set_ylabel("length of the difference of means")
    ax.legend(fontsize=7)
    return ax


def _band(ax: Axes, line: Line2D, ends: Sequence[tuple[float, float]]) -> None:
    """The intervals of a line, where its record has them."""
    if len(ends):
        low, high = zip(*ends, strict=True)
        ax.fill_between(range(len(ends)), low, high, color=line.get_color(), alpha=0.15, linewidth=0)


@styled
def plot_bypass(direction: Recorded | Record, ax: Axes | None = None) -> Axes:
    """Refusal score of harmful prompts without each candidate, by layer; dotted is the intact model's, starred the
    chosen one, and grey are random directions in its place. Bands are 95 % intervals over held-out prompts.
    """
    ax, record = axes_or_new(ax), record_of(direction)
    bypass = record["bypass"]
    for column, position in enumerate(record["positions"]):
        values = [float(row[column]) for row in bypass]
        if any(value == value for value in values):
            name = f"{position}: {record['tokens'][column]!r}"
            (line,) = ax.plot(range(len(values)), values, "o-", markersize=3, markeredgecolor=PAPER, label=name)
            _band(ax, line, [row[column] for row in record.get("bypass_interval", ())])
    ax.axhline(record["baseline"]["harmful"], color=MUTED, linestyle=":", linewidth=0.8)
    if record["layer"] is not None:
        ax.plot([record["layer"]], [record["chosen"]["bypass"][0]], "*", markersize=11, color=VERMILLION, zorder=5)
        for values in record["controls"].values():
            ax.plot([record["layer"]] * len(values), [row[0] for row in values], "_", color=MUTED)
    layer_axis(ax, len(bypass))
    ax.set_ylabel("refusal score without it (log odds)")
    ax.legend(fontsize=7)
    return ax
