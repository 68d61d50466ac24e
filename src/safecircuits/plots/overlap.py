"""Overlap of safety and utility by layer, one line a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D

from safecircuits.plots.style import MUTED, axes_or_new, layer_axis, legend_above, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LABELS = {
    "jaccard": "Jaccard index of top weights",
    "subspace": "shared part of leading directions",
}


@styled
def plot_overlap(frame: pd.DataFrame, chance: Mapping[str, float], measure: str, *, ax: Axes | None = None) -> Axes:
    """Attention's matrices as solid lines, the MLP's dashed; dotted is chance, the mean over matrices."""
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
    layer_axis(ax, int(frame.index.max()) + 1)
    ax.set_ylim(0, 1.05 * max(float(frame.max().max()), max(chance.values())))
    ax.set_ylabel(LABELS[measure])
    handles, _ = ax.get_legend_handles_labels()
    legend_above(ax, 4, handles=[*handles, Line2D([], [], color=MUTED, linestyle=":", linewidth=1.0, label="chance")])
    return ax
