"""Figures of fine-tuning runs over their steps: training loss, and what was measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safecircuits.base.counted import keys as told
from safecircuits.base.stats import interval_of_rate
from safecircuits.plots.layers import model_colors
from safecircuits.plots.style import BLUE, METRICS, PAPER, axes_or_new, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_loss(losses: Sequence[float] | Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Axes:
    """The training loss of each step, from step 1, in nats per target token; the axis starts at zero.

    Args:
        losses: of one run, or of several by name (``FinetuneRun.losses``).
    """
    ax = axes_or_new(ax)
    if isinstance(losses, Mapping):
        colors = model_colors(losses)
        for name, one in losses.items():
            ax.plot(range(1, len(one) + 1), one, color=colors[name], label=name)
        legend_above(ax, min(len(losses), 3))
    else:
        ax.plot(range(1, len(losses) + 1), losses, color=BLUE)
    ax.set(xlabel="step", ylabel="training loss (nats per token)")
    ax.set_ylim(bottom=0)
    ax.grid(True, axis="y")
    return ax


@styled
def plot_rates_by_step(
    evaluations: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]], *, ax: Axes | None = None
) -> Axes:
    """Refusal, over-rejection and utility over the steps of a run, in percent; of several runs refusal alone.

    Lines through the marks are 95 % Wilson intervals, where a row has its number of prompts (``malicious_n``).

    Args:
        evaluations: ``FinetuneRun.evaluations`` of a run, or of several by name.
    """
    ax = axes_or_new(ax)
    if isinstance(evaluations, Mapping):
        colors, n = model_colors(evaluations), len(evaluations)
        lines = [(name, "malicious_refused", rows, colors[name], "o") for name, rows in evaluations.items()]
        ax.set_ylabel("malicious refused (%)")
    else:
        known = [metric for key, metric in METRICS.items() if any(key in row for row in evaluations)]
        lines, n = [(m.label, m.key, evaluations, m.color, m.marker) for m in known], len(known)
        ax.set_ylabel("share of prompts (%)")
    for name, key, rows, color, marker in lines:
        points = [(row["step"], 100 * row[key]) for row in rows if key in row]
        for row in rows:
            if key in row and (asked := row.get(told(key).get("n", ""))):
                low, high = interval_of_rate(row[key], asked)
                ax.vlines(row["step"], 100 * low, 100 * high, color=color, linewidth=1, alpha=0.6)
        ax.plot(*zip(*points, strict=True), f"{marker}-", color=color, label=name, markeredgecolor=PAPER)
    ax.set_xlabel("step")
    ax.set_ylim(-4, 104)
    ax.grid(True, axis="y")
    legend_above(ax, min(n, 3))
    return ax
