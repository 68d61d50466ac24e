"""Figures of fine-tuning studies: refusal along training, and where freezing helps or harms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.seeds import draw_over_seeds
from safecircuits.plots.style import (
    BLUE,
    COLUMN,
    INK,
    PAPER,
    VERMILLION,
    axes_or_new,
    legend_above,
    percent_axis,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LEGEND_WIDTH = 76
"""Characters of a legend that are as wide as a column: with more the axes would shrink."""

CONTROL = "full"
"""The arm that freezes nothing."""

_DIVERGING = LinearSegmentedColormap.from_list("harms to helps", [VERMILLION, PAPER, BLUE])


@styled
def plot_study(
    study: Recorded | Record,
    scenario: str | None = None,
    *,
    arms: Sequence[str] | None = None,
    against: str = "task_loss",
    ax: Axes | None = None,
) -> Axes:
    """Refusal of malicious prompts along training: a thin line a seed, a thick one for their mean.

    Lines through the marks are 95 % intervals: over seeds, and of one seed over prompts. Training with nothing frozen,
    the control, is dashed.

    Args:
        scenario: the study's first unless given.
        arms: which to draw, those that the scenario has; all unless given. More than six share colours.
        against: ``"task_loss"``, so that arms are compared where they have learnt as much, or ``"step"``.
    """
    if against not in ("task_loss", "step"):
        raise ValueError(f"against is 'task_loss' or 'step', not {against!r}")
    record = record_of(study)
    runs: Sequence[Record] = record["runs"]
    scenario = scenario or str(runs[0]["scenario"])
    ax = axes_or_new(ax, (COLUMN[0], 3.1))
    there = {run["arm"] for run in runs if run["scenario"] == scenario}
    named = dict.fromkeys(str(run["arm"]) for run in runs)
    drawn = [arm for arm in named if arm in there and (arms is None or arm in arms)]
    for arm in drawn:
        curves = [run["curve"] for run in runs if (run["scenario"], run["arm"]) == (scenario, arm)]
        seeds = [
            ([point[against] for point in curve], [point["malicious_refused"] for point in curve]) for curve in curves
        ]
        draw_over_seeds(ax, seeds, arm, record.get("n_malicious"), control=arm == CONTROL)
    percent_axis(ax, "y", "malicious refused (%)")
    ax.set_xlabel("task loss (nats per token), training goes right" if against == "task_loss" else "step")
    if against == "task_loss":
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.invert_xaxis()
    handles, labels = ax.get_legend_handles_labels()
    widest = max(map(len, labels), default=0) + 6  # its line included
    legend_above(ax, max(1, min(4, len(drawn), LEGEND_WIDTH // widest)), handles=handles, labels=labels)
    return ax


@styled
def plot_grid(frame: pd.DataFrame, scenario: str, at: str = "matched loss", *, ax: Axes | None = None) -> Axes:
    """Refusal that each frozen block keeps beyond full fine-tuning, in points: blue helps, vermillion harms.

    A row is a model at a learning rate, a column a block. Bold figures are those whose interval excludes zero. Cells
    without a figure could not be compared.

    Args:
        frame: one row a comparison, as ``FreezingGrid.to_frame()`` has them.
    """
    frame = frame[(frame["scenario"] == scenario) & (frame["at"] == at)]
    if frame.empty:
        raise ValueError(f"the grid has no comparisons of scenario {scenario!r} at {at!r}")
    rows = list(dict.fromkeys(zip(frame["model"], frame["lr"], strict=True)))
    columns = list(dict.fromkeys(frame["arm"]))
    ax = axes_or_new(ax, (COLUMN[0], 0.8 + 0.3 * len(rows)))
    for _, row in frame.iterrows():
        x, y = columns.index(row["arm"]), rows.index((row["model"], row["lr"]))
        shade = _DIVERGING(0.5 + 0.5 * max(-1.0, min(1.0, row["difference"])))
        ax.add_patch(_cell(x, y, shade))
        bold = row["verdict"] in ("helps", "harms")
        ax.text(
            x,
            y,
            f"{100 * row['difference']:+.0f}",
            ha="center",
            va="center",
            color=INK,
            fontweight="bold" if bold else "normal",
        )
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), [f"{model}, lr {lr:g}" for model, lr in rows])
    ax.tick_params(length=0)
    ax.set_xlabel(f"frozen; points of refusal beyond full fine-tuning at {at}")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _cell(x: int, y: int, color: tuple[float, float, float, float]) -> Rectangle:
    return Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, color=color, linewidth=0, zorder=0)
