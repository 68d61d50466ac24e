"""The figure of one fine-tuning run: its training loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from safecircuits.report.layer_figures import model_colors
from safecircuits.report.style import BLUE, axes_or_new, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safecircuits.training.run import FinetuneRun


@styled
def plot_loss(run: FinetuneRun | Mapping[str, FinetuneRun], *, ax: Axes | None = None) -> Axes:
    """The training loss of each step, from step 1, in nats per target token; the axis starts at zero.

    Args:
        run: one, or several by name.
    """
    ax = axes_or_new(ax)
    if isinstance(run, Mapping):
        colors = model_colors(run)
        for name, one in run.items():
            ax.plot(range(1, len(one.losses) + 1), one.losses, color=colors[name], label=name)
        legend_above(ax, min(len(run), 3))
    else:
        ax.plot(range(1, len(run.losses) + 1), run.losses, color=BLUE)
    ax.set(xlabel="step", ylabel="training loss (nats per token)")
    ax.set_ylim(bottom=0)
    ax.grid(True, axis="y")
    return ax
