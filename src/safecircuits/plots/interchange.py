"""Figure of patching between two checkpoints: refusal against the number of patched units, both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import BLUE, MUTED, VERMILLION, axes_or_new, legend_above, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"sufficient": BLUE, "necessary": VERMILLION}
_LABELS = {"sufficient": "base with the aligned model's units", "necessary": "aligned with the base's units"}
_STYLES = {"found": "o-", "random": ":", "same layers": "--"}


@styled
def plot_patching(curves: Recorded | Record, *, ax: Axes | None = None) -> Axes:
    """Refusal rate by the number of patched units; dashed: as many random units of the same layers, dotted: of any.

    The grey lines are the two models as they are; lines through the marks are 95 % Wilson intervals over prompts.
    """
    ax = axes_or_new(ax)
    record = record_of(curves)
    counts = record["counts"]
    for name in ("base", "aligned"):
        ax.axhline(record[name], color=MUTED, linewidth=0.8, zorder=1)
    for direction, kinds in record["curves"].items():
        for kind, curve in kinds.items():
            label = _LABELS[direction] if kind == "found" else f"_{direction} {kind}"
            if kind == "found" and (ends := curve.get("intervals")):
                ax.vlines(counts, *zip(*ends, strict=True), color=_COLORS[direction], linewidth=1, alpha=0.6)
            ax.plot(counts, curve["rates"], _STYLES[kind], color=_COLORS[direction], label=label, markersize=4)
    ax.set_xscale("log")
    ax.set_xlabel("units patched (dashed: random, same layers; dotted: random)")
    percent_axis(ax, "y", "malicious refused (%)")
    legend_above(ax, 1)
    return ax
