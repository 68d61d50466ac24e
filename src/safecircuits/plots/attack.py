"""Figures of attack studies: what is reached within so many steps, and what it takes from the model's use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import COLUMN, axes_or_new, legend_above, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_within(study: Recorded | Record, ax: Axes | None = None) -> Axes:
    """The worst harm within so many steps of training: a thick line an arm for the mean, thin ones for seeds."""
    record = record_of(study)
    ax = axes_or_new(ax, (COLUMN[0], 3.1))
    for arm, seeds in record["within"].items():
        steps = [point["step"] for point in seeds[0]]
        mean = [sum(seed[i]["harm"] for seed in seeds) / len(seeds) for i in range(len(steps))]
        (line,) = ax.plot(range(len(steps)), mean, marker="o", markersize=3, label=arm, zorder=3)
        for seed in seeds if len(seeds) > 1 else ():
            harms = [point["harm"] for point in seed]
            ax.plot(range(len(steps)), harms, color=line.get_color(), linewidth=0.7, alpha=0.5, label="_seed")
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
    """Pareto fronts: the worst harm that is reached where no more than so much utility is lost, a step line a seed."""
    record = record_of(study)
    ax = axes_or_new(ax, (COLUMN[0], 3.1))
    for i, (arm, rows) in enumerate(record["fronts"].items()):
        for k, seed in enumerate(dict.fromkeys(row["seed"] for row in rows)):
            own = [row for row in rows if row["seed"] == seed]
            losses = [100 * row["utility_loss"] for row in own] + [100]
            harms = [row["harm"] for row in own] + [own[-1]["harm"]]
            label = arm if k == 0 else "_seed"
            ax.step(losses, harms, where="post", color=f"C{i}", linewidth=1.1, label=label)
    percent_axis(ax, "y", "worst harm (% complied)")
    ax.set_xlabel("utility lost, at most (points)")
    _legend(ax, list(record["fronts"]))
    return ax


def _legend(ax: Axes, names: Sequence[str]) -> None:
    widest = max(map(len, names)) + 6
    handles, labels = ax.get_legend_handles_labels()
    legend_above(ax, max(1, min(4, len(names), 76 // widest)), handles=handles, labels=labels)
