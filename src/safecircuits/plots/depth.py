"""Figure of alignment's depth: divergence from the base by answer token, beside refusal by prefilled tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import BLUE, MUTED, VERMILLION, axes_or_new, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_depth(depth: Recorded | Record, pressure: Recorded | Record | None = None, *, ax: Axes | None = None) -> Axes:
    """KL by answer token with its band; the dotted line is behind the tokens that hold 90 % of it.

    With ``pressure`` a second axis has the refusal rate when that many tokens of a compliant answer are prefilled,
    without a system prompt.
    """
    ax = axes_or_new(ax)
    record = record_of(depth)
    tokens = range(len(record["kl"]))
    ax.fill_between(tokens, record["low"], record["high"], color=BLUE, alpha=0.18, linewidth=0)
    ax.plot(tokens, record["kl"], "o-", color=BLUE, markersize=4)
    ax.axvline(record["depth"] - 0.5, color=MUTED, linewidth=0.8, linestyle=":")
    ax.set(xlabel="answer tokens before", ylabel="KL(aligned ‖ base), nats")
    ax.set_ylim(bottom=0)
    if pressure is not None:
        rows = [row for row in record_of(pressure)["refusal"] if not row["system"] and row["prefilled"] in tokens]
        beside = ax.twinx()
        for row in rows:
            beside.vlines(row["prefilled"], *row["interval"], color=VERMILLION, linewidth=1, alpha=0.6)
        beside.plot([r["prefilled"] for r in rows], [r["rate"] for r in rows], "s--", color=VERMILLION, markersize=4)
        percent_axis(beside, "y", "refused with as many prefilled (%)")
    return ax
