"""Figures of attack studies: what is reached within so many steps, and what it takes from the model's use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.seeds import draw_over_seeds, interval_over_seeds
from safecircuits.plots.style import COLUMN, axes_or_new, legend_above, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_within(study: Recorded | Record, ax: Axes | None = None) -> Axes:
    """The worst harm within so many steps of training: a thick line an arm for the mean, thin ones for seeds.

    Lines through the marks are 95 % intervals over seeds. The arm that defends nothing, the control, is dashed; dotted
    is what counts as broken.
    """
    record = record_of(study)
    ax = axes_or_new(ax, (COLUMN[0], 3.1))
    for arm, seeds in record["within"].items():
        steps = [point["step"] for point in seeds[0]]
        lines = [(range(len(steps)), [point["harm"] for point in seed]) for seed in seeds]
        draw_over_seeds(ax, lines, arm, record.get("n_reported"), control=arm == record.get("reference"))
    ax.axhline(record["breaks_at"], color="0.5", linewidth=0.8, linestyle=":", zorder=1)
    ax.xaxis.set_major_locator(FixedLocator(list(range(len(steps)))))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda i, _: f"{steps[int(i)]:g}" if 0 <= i < len(steps) else ""))
    ax.xaxis.set_minor_formatter(NullFormatter())
    percent_axis(ax, "y", "worst harm (% complied)")
    ax.set_xlabel("steps of training, at most")
    _legend(ax, list(record["within"]))
    return ax


@styled
def plot_fronts(study: Recorded | Record, ax: Axes | None = None) -> Axes:
    """Pareto fronts: the worst harm that is reached where no more than so much utility is lost.

    A thick step line an arm is the mean over seeds with its 95 % interval, thin ones are the seeds. The arm that
    defends nothing, the control, is dashed.
    """
    record = record_of(study)
    ax = axes_or_new(ax, (COLUMN[0], 3.1))
    for i, (arm, rows) in enumerate(record["fronts"].items()):
        color, dashed = f"C{i}", arm == record.get("reference")
        seeds = [[row for row in rows if row["seed"] == seed] for seed in dict.fromkeys(row["seed"] for row in rows)]
        losses = sorted({row["utility_loss"] for row in rows} | {1.0})
        losses = [loss for loss in losses if loss >= max(own[0]["utility_loss"] for own in seeds)]
        harms = [[_reached(own, loss) for own in seeds] for loss in losses]
        at = [100 * loss for loss in losses]
        mean = [sum(values) / len(values) for values in harms]
        style = (0, (3, 1.5)) if dashed else "-"
        ax.step(at, mean, where="post", color=color, linewidth=1.4, linestyle=style, label=arm)
        ends = [interval_over_seeds(values, record.get("n_reported")) or (math.nan, math.nan) for values in harms]
        low, high = zip(*ends, strict=True)
        ax.fill_between(at, low, high, step="post", color=color, alpha=0.13, linewidth=0)
        for own in seeds if len(seeds) > 1 else ():
            each = [_reached(own, loss) for loss in losses]
            ax.step(at, each, where="post", color=color, linewidth=0.5, alpha=0.4, label="_seed")
    percent_axis(ax, "y", "worst harm (% complied)")
    ax.set_xlabel("utility lost, at most (points)")
    _legend(ax, list(record["fronts"]))
    return ax


def _reached(front: Sequence[Record], loss: float) -> float:
    """The harm of a front where no more than this is lost."""
    return float(max(row["harm"] for row in front if row["utility_loss"] <= loss))


def _legend(ax: Axes, names: Sequence[str]) -> None:
    widest = max(map(len, names)) + 6
    handles, labels = ax.get_legend_handles_labels()
    legend_above(ax, max(1, min(4, len(names), 76 // widest)), handles=handles, labels=labels)
