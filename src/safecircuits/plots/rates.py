"""Figures of rates side by side: what each model does, and what fine-tuning leaves of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D

from safecircuits.base.record import RATES, Record, Recorded, arms, interval, number, records_of
from safecircuits.base.text import percent
from safecircuits.plots.style import (
    COLUMN,
    GRID,
    METRICS,
    MUTED,
    PAPER,
    axes_or_new,
    legend_above,
    percent_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_behavior(behavior: Recorded | Mapping[str, Recorded | Record], *, ax: Axes | None = None) -> Axes:
    """What each model refuses and gets right: one row a model, one mark a rate, with its 95 % interval.

    Args:
        behavior: one ``Behavior``, or by name such results or records of rates between 0 and 1 with
            ``<rate>_interval``.
    """
    rows = records_of(behavior if isinstance(behavior, Mapping) else {"": behavior})
    ax = axes_or_new(ax, (COLUMN[0], 0.85 + 0.42 * len(rows)))
    _dot_rows(ax, rows, list(rows), [name for name in RATES if any(name in row for row in rows.values())])
    return ax


@styled
def plot_finetune(
    finetune: Record,
    *,
    metrics: Sequence[str] = ("malicious_refused", "over_rejected", "utility", "new_task"),
    ax: Axes | None = None,
) -> Axes:
    """What fine-tuning leaves, one row an arm: the mean over seeds with its 95 % interval, small dots for the seeds.

    Dashed lines are the rates before fine-tuning.

    Args:
        finetune: arms by name, each with rates between 0 and 1, ``<rate>_interval`` and ``<rate>_seeds``; ``before``
            has the rates of the model that was fine-tuned.
        metrics: rates to show, by name.
    """
    rows = arms(finetune)
    ax = axes_or_new(ax, (COLUMN[0], 0.9 + 0.52 * len(rows)))
    before = finetune.get("before") or {}
    shown = [name for name in metrics if any(name in row for row in rows.values())]
    for name in shown:
        if (rate := number(before.get(name))) is not None:
            ax.axvline(rate, color=METRICS[name].color, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    _dot_rows(ax, rows, [_arm_label(name, row) for name, row in rows.items()], shown, before=bool(before))
    return ax


def _arm_label(name: str, row: Record) -> str:
    label = str(row.get("label") or name.replace("_", " "))
    share = number(row.get("share_of_parameters"))
    return f"{label}\n{percent(share)} of weights" if share else label


def _dot_rows(
    ax: Axes, rows: Mapping[str, Record], labels: Sequence[str], metrics: Sequence[str], before: bool = False
) -> None:
    """Rates as marks, one row a record; the marks of a row stand one below the other."""
    step = 0.72 / max(1, len(metrics))
    for i, row in enumerate(rows.values()):
        if i % 2 == 0:
            ax.axhspan(i - 0.5, i + 0.5, color=GRID, alpha=0.35, linewidth=0, zorder=0)
        for slot, name in enumerate(metrics):
            rate = number(row.get(name))
            if rate is None:
                continue
            metric = METRICS[name]
            y = i + (slot - (len(metrics) - 1) / 2) * step
            if spread := interval(row, name):
                low, high = (min(max(end, 0.0), 1.0) for end in spread)
                ax.hlines(y, low, high, color=metric.color, linewidth=1.4, zorder=2)
            for seed in row.get(f"{name}_seeds") or ():
                ax.plot(seed, y, "o", color=metric.color, markersize=2.2, alpha=0.6, zorder=3, label=f"{name} seed")
            ax.plot(
                rate, y, metric.marker, color=metric.color, markeredgecolor=PAPER, markersize=6, zorder=4, label=name
            )
    ax.set_yticks(range(len(rows)), labels)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    percent_axis(ax, "x")
    handles = [
        Line2D(
            [], [], linestyle="none", marker=METRICS[name].marker, color=METRICS[name].color, label=METRICS[name].label
        )
        for name in metrics
    ]
    if before:
        handles.append(Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="before"))
    legend_above(ax, len(handles) if len(handles) < 5 else 3, side="right", handles=handles)
