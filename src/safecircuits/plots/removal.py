"""What removing units leaves of refusal, against what it costs in ordinary answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecircuits.plots.style import BLUE, INK, MUTED, PAPER, VERMILLION, axes_or_new, percent_axis, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@styled
def plot_removal(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """One mark a set of units, numbered in the order of the rows: refusal left against first-token KL.

    Args:
        frame: ``removed``, ``malicious_refused`` (0 to 1; with ``_low`` and ``_high``, its interval) and
            ``first_token_kl`` (nats), the intact model first.
    """
    ax = axes_or_new(ax)
    for i, row in enumerate(frame.to_dict("records")):
        name = str(row["removed"])
        color = MUTED if i == 0 or name.startswith("random") else BLUE if "planted" in name else VERMILLION
        if "malicious_refused_low" in row:
            ends = row["malicious_refused_low"], row["malicious_refused_high"]
            ax.vlines(row["first_token_kl"], *ends, color=color, linewidth=1, alpha=0.6, zorder=2)
        ax.plot(
            row["first_token_kl"],
            row["malicious_refused"],
            "o" if i else "s",
            color=color,
            markeredgecolor=PAPER,
            markersize=7,
            label=f"{i} {name}",
            zorder=3,
        )
        ax.annotate(
            str(i),
            (row["first_token_kl"], row["malicious_refused"]),
            (5, 4),
            textcoords="offset points",
            color=INK,
        )
    percent_axis(ax, "y", "malicious refused (%)")
    ax.set_ylim(-0.05, 1.08)
    ax.set_xlim(left=min(-0.02, -0.03 * float(frame["first_token_kl"].max())))
    ax.set_xlabel("first-token KL on ordinary requests (nats)")
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.24), ncols=1, frameon=False, borderaxespad=0)
    return ax
