"""The share of the decision to refuse that patching after each layer carries, and the layers that decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecircuits.base.record import Block, Record, Recorded, bounds, record_of
from safecircuits.plots.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    RangeMark,
    axes_or_new,
    layer_axis,
    mark_ranges,
    percent_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_decision(decision: Recorded | Record, *, planted: Block | None = None, ax: Axes | None = None) -> Axes:
    """The share by layer with its 95 % interval; dotted lines are its values around the layers that decide.

    Args:
        planted: the block where refusals are by construction, if that is known.
    """
    ax = axes_or_new(ax)
    record = record_of(decision)
    layers = range(len(record["share"]))
    ax.fill_between(layers, record["low"], record["high"], color=BLUE, alpha=0.18, linewidth=0)
    ax.plot(layers, record["share"], "o-", color=BLUE, markeredgecolor=PAPER)
    for level in record.get("grows") or ():
        ax.axhline(level, color=MUTED, linewidth=0.8, linestyle=":", zorder=1)
    percent_axis(ax, "y", "decision carried by patching (%)")
    layer_axis(ax, len(layers))
    marks = []
    if known := bounds(planted):
        marks.append(RangeMark("planted", *known, INK, known=True))
    if found := bounds(record["layers"]):
        marks.append(RangeMark("decides", *found, ORANGE))
    mark_ranges(ax, marks)
    return ax
