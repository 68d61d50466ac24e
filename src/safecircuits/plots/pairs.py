"""Figures of several panels: the paper's Figs. 1 to 3 and 5 to 7, and one model held against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from safecircuits.base.record import Record, Recorded, pair_statistics, record_of
from safecircuits.plots.layers import model_colors, plot_gap, plot_pair_curves
from safecircuits.plots.style import MUTED, PAIR_STYLES, PAPER, layer_axis, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = (2.25, 2.1)
"""Width and height in inches of one of several panels: three of them fill the width of a page."""


@styled
def pair_panels(gap: Recorded | Record) -> Figure:
    """N–N, M–M and N–M similarity of one model in a panel each: mean and ±1 standard deviation (Fig. 1, 5 to 7)."""
    figure = Figure(figsize=(3 * PANEL[0], PANEL[1]))
    axes = figure.subplots(1, 3, sharey=True)
    for ax, kind in zip(axes, PAIR_STYLES, strict=True):
        plot_pair_curves(gap, kinds=[kind], ax=ax)
        ax.set_title(f"{PAIR_STYLES[kind][0]} pairs", loc="left")
    _shared_similarity([gap], axes)
    return figure


@styled
def models_side_by_side(gaps: Mapping[str, Recorded | Record], *, columns: int | None = None) -> Figure:
    """N–N against N–M similarity, one panel a model: the four-model figure (Fig. 2, top), and its bases (Fig. 3).

    Args:
        gaps: by the title of their panel.
        columns: panels in one row; all of them up to four unless given.

    Raises:
        ValueError: without a model, or for fewer than one column.
    """
    if not gaps:
        raise ValueError("no similarity curves to plot")
    columns = min(len(gaps), 4) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    rows = ceil(len(gaps) / columns)
    figure = Figure(figsize=(max(columns, 1.6) * PANEL[0], rows * PANEL[1] + 0.2))
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for ax in axes[len(gaps) :]:
        ax.remove()
    draw_models(gaps, axes[: len(gaps)])
    return figure


def draw_models(gaps: Mapping[str, Recorded | Record], axes: Sequence[Axes]) -> None:
    """N–N against N–M similarity of each model on an axis of its own, all on one scale, with one legend."""
    for ax, (name, gap) in zip(axes, gaps.items(), strict=True):
        plot_pair_curves(gap, kinds=("nn", "nm"), ax=ax)
        if (legend := ax.get_legend()) is not None:
            legend.remove()
        ax.set_title(name, loc="left")
    axes[0].legend(loc="lower left", borderaxespad=0.4)  # the curves start high and fall, so this corner is free
    _shared_similarity(list(gaps.values()), axes)


@styled
def plot_gap_difference(comparison: Recorded | Record, *, ax: Axes) -> Axes:
    """Gap of the reference minus that of each other model by layer, with its paired 95 % band over all layers at once.

    A filled mark is a layer where the band does not contain zero.

    Raises:
        ValueError: if no other model has the reference's depth.
    """
    record = record_of(comparison)
    gaps, reference = record["gaps"], record["reference"]
    if not record["differences"]:
        raise ValueError(f"no other model is as deep as {reference!r}, so there is no difference to plot")
    colors = model_colors(gaps)
    for name, difference in record["differences"].items():
        mean, color = difference["mean"], colors[name]
        layers = range(len(mean))
        ax.fill_between(layers, difference["low"], difference["high"], color=color, alpha=0.18, linewidth=0)
        ax.plot(layers, mean, "o-", color=color, markerfacecolor=PAPER, label=f"{reference} − {name}")
        apart = difference["layers_apart"]
        ax.plot(apart, [mean[layer] for layer in apart], "o", color=color, label="_apart")
    layer_axis(ax, len(gaps[reference]["gap_deg"]))
    ax.axhline(0, color=MUTED, linewidth=0.7, zorder=1)
    ax.set_ylabel("difference of the gap (°)")
    legend_above(ax, 1)
    return ax


@styled
def comparison_figure(comparison: Recorded | Record) -> Figure:
    """Above, N–N against N–M similarity of each model; below, their gap curves with intervals, and the difference."""
    record = record_of(comparison)
    n = len(record["gaps"])
    lower = 2 if record["differences"] else 1
    figure = Figure(figsize=(max(3, n) * PANEL[0], PANEL[1] + 2.6))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(PANEL[1], 2.6))[:, 0]
    draw_models(record["gaps"], list(above.subplots(1, n, sharey=True, squeeze=False).flat))
    axes = list(below.subplots(1, lower, squeeze=False, width_ratios=(1.2, 1)[:lower]).flat)
    plot_gap(record["gaps"], onset=record["onsets"], intervals=record["intervals"], ax=axes[0])
    if record["differences"]:
        plot_gap_difference(record, ax=axes[1])
    below.supxlabel(f"onset: {record['rule']}", fontsize=7, color=MUTED)
    return figure


def _shared_similarity(gaps: Sequence[Recorded | Record], axes: Sequence[Axes]) -> None:
    """One cosine axis for all panels, labelled once in each row."""
    axes[0].set_ylim(similarity_limits(gaps))
    for ax in axes:
        spec = ax.get_subplotspec()
        if spec is not None and not spec.is_first_col():
            ax.set_ylabel("")


def similarity_limits(gaps: Sequence[Recorded | Record]) -> tuple[float, float]:
    """Limits of a cosine axis that holds the pair curves of all ``gaps``, so that they can be compared."""
    low, high = [], []
    for statistics in map(pair_statistics, gaps):
        for kind in PAIR_STYLES:
            mean = statistics.get(f"{kind}_mean", [])
            std = statistics.get(f"{kind}_std", [0.0] * len(mean))
            low += [m - s for m, s in zip(mean, std, strict=True)]
            high += [m + s for m, s in zip(mean, std, strict=True)]
    room = 0.04 * max(max(high) - min(low), 0.01)
    return min(low) - room, max(high) + room
