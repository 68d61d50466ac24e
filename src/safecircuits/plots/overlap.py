"""Overlap of safety and utility by layer, one line a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import MUTED, VERMILLION, axes_or_new, layer_axis, legend_above, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LABELS = {
    "jaccard": "Jaccard index of top weights",
    "subspace": "shared part of leading directions",
}


@styled
def plot_overlap(
    frame: pd.DataFrame,
    chance: Mapping[str, float],
    measure: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Attention's matrices as solid lines, the MLP's dashed; dotted is chance, the mean over matrices.

    Args:
        intervals: where 95 % of chance lies by matrix; the widest of a layer is drawn as a band.
    """
    ax = axes_or_new(ax)
    for i, component in enumerate(frame.columns):
        attention = component in ("q", "k", "v", "o")
        ax.plot(
            frame.index,
            frame[component],
            "-" if attention else "--",
            color=f"C{i}",
            linewidth=1.3,
            marker=".",
            label=f"{'attention' if attention else 'MLP'}, {component}",
        )
    ax.axhline(sum(chance.values()) / len(chance), color=MUTED, linestyle=":", linewidth=1.0)
    top = max(float(frame.max().max()), max(chance.values()))
    if intervals:
        of = [[ends for key, ends in intervals.items() if key.split(".")[0] == str(layer)] for layer in frame.index]
        low, high = ([pick(ends[side] for ends in one) for one in of] for side, pick in ((0, min), (1, max)))
        # each layer's own, over its whole width, so that a single layer has one too
        edges = [frame.index[0] - 0.5, *(layer + 0.5 for layer in frame.index)]
        ax.fill_between(edges, [low[0], *low], [high[0], *high], step="pre", color=MUTED, alpha=0.28, linewidth=0)
        top = max(top, *high)
    layer_axis(ax, int(frame.index.max()) + 1)
    ax.set_ylim(0, 1.05 * top)
    ax.set_ylabel(LABELS[measure])
    handles, _ = ax.get_legend_handles_labels()
    legend_above(
        ax,
        4,
        handles=[
            *handles,
            Line2D([], [], color=MUTED, linestyle=":", linewidth=1.0, label="chance, 95 %" if intervals else "chance"),
        ],
    )
    return ax


@styled
def plot_object_overlap(overlap: Recorded | Record, ax: Axes | None = None) -> Axes:
    """Units that each pair of sets has in common, and where 95 % of chance lies."""
    ax, record = axes_or_new(ax), record_of(overlap)
    pairs = record["pairs"]
    for row, pair in enumerate(pairs):
        ax.plot([pair["low"], pair["high"]], [row, row], color=MUTED, linewidth=5, alpha=0.5)
        ax.plot([pair["both"]], [row], "o", color=VERMILLION)
    ax.set_yticks(range(len(pairs)), [f"{pair['a']} and {pair['b']}" for pair in pairs])
    ax.set_xlabel("units in common (grey: 95 % of chance)")
    return ax
