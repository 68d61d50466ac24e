"""Figures of the reasoning-direction probe: distances by generated token and by block, and the gap between them.

Colour is the model; a solid line is the distance to the benign variant, a dashed one that to the malicious variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from safecircuits.base.record import Record, Recorded, records_of
from safecircuits.plots.layers import model_colors
from safecircuits.plots.style import INK, MUTED, PAPER, axes_or_new, layer_axis, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIDES: dict[Any, dict[str, Any]] = {
    "benign": {"linestyle": "-", "marker": "o"},
    "malicious": {"linestyle": (0, (3, 2)), "marker": "s", "markerfacecolor": PAPER, "markersize": 4},
}


@styled
def plot_by_token(probes: Mapping[str, Recorded | Record], *, layer: int = -1, ax: Axes | None = None) -> Axes:
    """Distance after so many generated tokens at one block; bands span the suffixes of a side."""
    ax, records = axes_or_new(ax), records_of(probes)
    steps = sorted({step for probe in records.values() for step in probe["steps"]})
    for name, probe in records.items():
        _lines(ax, probe, name, records, list(probe["steps"]), lambda values: values[:, layer])
    ax.set_xticks(steps)
    depths = [_depth(probe) for probe in records.values()]
    block = f"block {layer % depths[0]}" if len(set(depths)) == 1 or layer >= 0 else "last block"
    ax.set(xlabel="generated tokens", ylabel=f"cosine distance, {block}")
    ax.grid(True, axis="y")
    ax.set_ylim(bottom=0)
    _legend(ax, records)
    return ax


@styled
def plot_by_block(probes: Mapping[str, Recorded | Record], *, step: int | None = None, ax: Axes | None = None) -> Axes:
    """Distance after each block at one step (the last unless given)."""
    ax, records = axes_or_new(ax), records_of(probes)
    for name, probe in records.items():
        at = probe["steps"].index(step) if step in probe["steps"] else -1
        _lines(ax, probe, name, records, list(range(_depth(probe))), _at_step(at))
    layer_axis(ax, max(map(_depth, records.values())))
    ax.set(xlabel="block", ylabel=f"cosine distance, {_after(records, step)}")
    ax.set_ylim(bottom=0)
    _legend(ax, records)
    return ax


@styled
def plot_direction_gap(
    probes: Mapping[str, Recorded | Record], *, step: int | None = None, absolute: bool = False, ax: Axes | None = None
) -> Axes:
    """d_malicious − d_benign after each block with 95 % intervals; above zero the model leans to refusing.

    Args:
        absolute: without the sign, as the paper draws it; then without intervals.
    """
    ax, records = axes_or_new(ax), records_of(probes)
    colors = model_colors(records)
    for name, probe in records.items():
        gap = probe["gap"][_slot(probe, step)]
        layers = range(_depth(probe))
        if not absolute:
            ax.fill_between(layers, gap["low"], gap["high"], color=colors[name], alpha=0.18, linewidth=0)
        values = np.abs(gap["mean"]) if absolute else gap["mean"]
        ax.plot(layers, values, "o-", color=colors[name], label=name, markeredgecolor=PAPER)
    layer_axis(ax, max(map(_depth, records.values())))
    ax.axhline(0, color=MUTED, linewidth=0.7, zorder=1)
    what = "|d_malicious − d_benign|" if absolute else "d_malicious − d_benign"
    ax.set(xlabel="block", ylabel=f"{what}, {_after(records, step)}")
    if len(records) > 1:
        legend_above(ax, 3)
    return ax


@styled
def direction_figure(probes: Mapping[str, Recorded | Record], *, layer: int = -1, step: int | None = None) -> Figure:
    """The three views side by side."""
    figure = Figure(figsize=(11.4, 3.2))
    left, middle, right = figure.subplots(1, 3)
    plot_by_token(probes, layer=layer, ax=left)
    plot_by_block(probes, step=step, ax=middle)
    plot_direction_gap(probes, step=step, ax=right)
    return figure


def _lines(
    ax: Axes, probe: Record, name: str, probes: Mapping[str, Record], x: list[int], pick: Callable[[Any], Any]
) -> None:
    color = model_colors(probes)[name]
    for side, look in _SIDES.items():
        values = pick(np.asarray(probe[side]))  # suffix x
        if len(values) > 1:
            low, high = values.min(0), values.max(0)
            ax.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
        ax.plot(x, values.mean(0), color=color, markeredgecolor=PAPER if side == "benign" else color, **look)


def _at_step(at: int) -> Callable[[Any], Any]:
    return lambda values: values[:, :, at]


def _legend(ax: Axes, probes: Mapping[str, Record]) -> None:
    colors = model_colors(probes)
    named = [name for name in probes if name]
    handles = [Line2D([], [], color=colors[name], linewidth=3, label=name) for name in named]
    handles += [
        Line2D([], [], color=INK, label=f"to {side}", markeredgecolor=INK, **look) for side, look in _SIDES.items()
    ]
    legend_above(ax, max(2, len(named)) if len(named) > 2 else 4, handles=handles)


def _depth(probe: Record) -> int:
    return len(probe["benign"][0])


def _slot(probe: Record, step: int | None) -> int:
    """Where a number of generated tokens stands among those that were measured; the last unless given."""
    if step is None:
        return len(probe["steps"]) - 1
    if step not in probe["steps"]:
        measured = ", ".join(map(str, probe["steps"]))
        raise ValueError(f"nothing was measured after {step} tokens; there are {measured}")
    return int(probe["steps"].index(step))


def _after(probes: Mapping[str, Record], step: int | None) -> str:
    return f"{step or next(iter(probes.values()))['steps'][-1]} tokens"
