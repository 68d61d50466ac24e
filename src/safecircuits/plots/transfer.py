"""Attribute transfer as a figure: groups before and after as bars, flows between them as bands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import GROUP_COLORS, axes_or_new, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR, GAP, LEAST = 0.05, 0.035, 0.028
"""Width of a bar, room between bars, and the height below which a bar's label gets room of its own."""


@styled
def plot_transfer(transfer: Recorded | Record, *, threshold: float = 0.001, ax: Axes | None = None) -> Axes:
    """Bars in proportion to their share of all units; a band has the colour of the group it comes from.

    Flows below ``threshold`` are left out of the drawing; the title says how many, and of how many units.
    """
    ax = axes_or_new(ax, (5.2, 3.6))
    record = record_of(transfer)
    kept = [flow for flow in record["flows"] if flow["share"] >= threshold]
    dropped = [flow for flow in record["flows"] if flow["share"] < threshold]
    totals: dict[str, dict[str, float]] = record["totals"]
    tops = {side: _tops(shares) for side, shares in totals.items()}
    for side, x, align in (("before", 0.0, "right"), ("after", 1.0 - BAR, "left")):
        for group, share in totals[side].items():
            if not share:
                continue
            top = tops[side][group]
            ax.add_patch(Rectangle((x, top - share), BAR, share, color=GROUP_COLORS[group], linewidth=0))
            label_x = x - 0.02 if align == "right" else x + BAR + 0.02
            ax.text(label_x, top - share / 2, f"{group}  {100 * share:.1f} %", ha=align, va="center", fontsize=8)
    left, right = dict(tops["before"]), dict(tops["after"])
    # In order of both sides, bands of a bar lie as their other ends do and cross as little as they can.
    for flow in kept:
        before, after, share = flow["before"], flow["after"], flow["share"]
        band = _band(left[before], right[after], share)
        ax.add_patch(PathPatch(band, facecolor=GROUP_COLORS[before], alpha=0.38, linewidth=0))
        left[before] -= share
        right[after] -= share
    for x, side in ((0.0, "before"), (1.0 - BAR, "after")):
        ax.text(x + BAR / 2, 1.03, side, ha="center", va="bottom", fontsize=8.5)
    lowest = min(tops[side][group] - share for side in tops for group, share in totals[side].items())
    ax.set(xlim=(-0.24, 1.24), ylim=(lowest - 0.02, 1.1))
    if dropped:
        units = sum(flow["units"] for flow in dropped)
        many = f"{len(dropped)} flow{'s'[: len(dropped) > 1]}"
        ax.set_title(f"not drawn: {many} below {100 * threshold:g} %, {units} units in all", fontsize=8)
    ax.axis("off")
    return ax


def _tops(totals: Mapping[str, float]) -> dict[str, float]:
    """Upper edge of each group's bar, from the top down; a thin bar gets room for its label."""
    top = 1.0
    tops: dict[str, float] = {}
    for group, share in totals.items():
        slack = max(0.0, LEAST - share) / 2 if share else 0.0
        tops[group] = top - slack
        top -= share + 2 * slack + (GAP if share else 0.0)
    return tops


def _band(y0: float, y1: float, height: float) -> Path:
    """From the right edge of the left bar at ``y0`` to the left edge of the right bar at ``y1``, both upper edges."""
    a, b = BAR, 1.0 - BAR
    middle = (a + b) / 2
    vertices = [
        (a, y0),
        (middle, y0),
        (middle, y1),
        (b, y1),
        (b, y1 - height),
        (middle, y1 - height),
        (middle, y0 - height),
        (a, y0 - height),
        (a, y0),
    ]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    return Path(vertices, codes)
