"""One look for every figure: colours, type and marks, applied in an rc context and never globally.

Colour means the same thing everywhere: safety is vermillion, utility blue, what serves both purple, neither grey. The
hues are Okabe and Ito's, which people with colour-vision deficiencies tell apart; marker shapes repeat what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

P = ParamSpec("P")
R = TypeVar("R")

INK, MUTED, GRID, PAPER = "#1f2328", "#6b7280", "#e3e6ea", "#ffffff"
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7"

# Every colour by the name under which a page may restyle it; see svg.py.
PALETTE = {
    "ink": INK,
    "muted": MUTED,
    "grid": GRID,
    "paper": PAPER,
    "orange": ORANGE,
    "sky": SKY,
    "green": GREEN,
    "blue": BLUE,
    "vermillion": VERMILLION,
    "purple": PURPLE,
}

STAGE_COLORS = {
    "base": MUTED,
    "unaligned": SKY,
    "aligned": GREEN,
    "planted-layers": PURPLE,
    "planted-units": ORANGE,
}
PAIR_STYLES = {"nn": ("N–N", BLUE, "o"), "mm": ("M–M", VERMILLION, "s"), "nm": ("N–M", PURPLE, "D")}
GROUP_COLORS = {"SCU": VERMILLION, "UCU": BLUE, "CU": PURPLE, "RU": MUTED}


@dataclass(frozen=True)
class Metric:
    """How a rate is named and drawn."""

    key: str
    label: str
    color: str
    marker: str


METRICS = {
    metric.key: metric
    for metric in (
        Metric("malicious_refused", "malicious refused", VERMILLION, "o"),
        Metric("over_rejected", "over-rejected", ORANGE, "^"),
        Metric("normal_refused", "normal refused", PURPLE, "v"),
        Metric("utility", "utility", BLUE, "s"),
        Metric("new_task", "new task", GREEN, "D"),
    )
}

COLUMN = (4.2, 2.7)
"""Width and height in inches of a figure with one axis."""

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "Liberation Sans", "DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a model's name is a dollar sign
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=[GREEN, PURPLE, BLUE, ORANGE, SKY, VERMILLION, MUTED]),
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "legend.borderaxespad": 0.0,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "safecircuits",
}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with this style; the caller's rcParams are untouched."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(RC):
            return function(*args, **kwargs)

    return inside


def axes_or_new(ax: Axes | None, size: tuple[float, float] = COLUMN) -> Axes:
    """``ax``, or a new one of pyplot's, as a notebook shows by itself (and ``plt.show()`` elsewhere).

    Only a bare ``plot()`` of a user comes here: ``figures`` and the report make their own ``Figure`` objects, which
    need no display and leave nothing behind in pyplot.
    """
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size)[1]


def percent_axis(ax: Axes, axis: str = "y", label: str = "share of prompts (%)") -> None:
    """Rates from 0 to 1, labelled in percent, with room for marks at both ends."""
    chosen = ax.yaxis if axis == "y" else ax.xaxis
    ax.set(**{f"{axis}lim": (-0.04, 1.04), f"{axis}label": label})
    chosen.set_major_locator(MultipleLocator(0.25))
    chosen.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
    ax.grid(True, axis="x" if axis == "x" else "y")


def layer_axis(ax: Axes, n_layers: int) -> None:
    """Layers on x: whole numbers from 0, half a layer of room at both ends."""
    ax.set(xlim=(-0.5, n_layers - 0.5), xlabel="layer")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    ax.grid(True, axis="y")


def readable(ax: Axes, places: Sequence[float], labels: Sequence[str], least: float = 0.055) -> list[str]:
    """The labels of ticks on x, empty where one would run into the one before it or into the last.

    Args:
        least: distance of two labels, as a share of all that the ticks span on the axis' own scale.
    """
    at = ax.xaxis.get_transform().transform(np.asarray(places, dtype=float))
    span = float(at[-1] - at[0]) if len(at) > 1 else 0.0
    kept: list[str] = []
    before = float("-inf")
    for place, label in zip(at.tolist(), labels, strict=True):
        last = place == at[-1]
        shown = last or (place - before >= least * span and float(at[-1]) - place >= least * span)
        kept.append(label if shown else "")
        before = place if shown else before
    return kept


def cells_by_layer(ax: Axes) -> Axes:
    """An axis of cells: whole layers on x; no ticks, spines or grid."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return ax


def legend_above(ax: Axes, columns: int, *, side: Literal["left", "right"] = "left", **options: Any) -> None:
    """A legend in rows of ``columns`` on top of the axis, outside, where it covers no data; flush with one side."""
    at: Any = {"loc": f"lower {side}", "bbox_to_anchor": (float(side == "right"), 1.02)}
    ax.legend(ncols=columns, **at, **options)


def label_ends(ax: Axes, x: float, ends: Sequence[tuple[str, float]]) -> None:
    """Name lines at their right ends ``(name, y)``, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    apart = 0.075 * (high - low)
    placed = float("-inf")
    for name, y in sorted(ends, key=lambda end: end[1]):
        placed = max(y, placed + apart)
        ax.annotate(name, (x, placed), xytext=(4, 0), textcoords="offset points", va="center", annotation_clip=False)


@dataclass(frozen=True)
class RangeMark:
    """A block of layers, 0-indexed and inclusive, to be shown above the data; ``known`` if it is the true one."""

    label: str
    first: int
    last: int
    color: str
    known: bool = False


def mark_ranges(ax: Axes, marks: Iterable[RangeMark]) -> None:
    """Draw blocks of layers as bars above the data, one track a block; the known or only one shades its column."""
    marks = list(marks)
    if not marks:
        return
    height = 0.085
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + (high - low) / (1 - height * len(marks) - 0.02))
    left, right = ax.get_xlim()
    for track, mark in enumerate(marks):
        y = 1 - height * (track + 0.5)
        start, end = mark.first - 0.4, mark.last + 0.4
        if mark.known or len(marks) == 1:
            ax.axvspan(start, end, ymax=y, color=mark.color, alpha=0.09, linewidth=0, zorder=0)
        ax.plot(
            [start, end],
            [y, y],
            transform=ax.get_xaxis_transform(),
            color=mark.color,
            linewidth=4,
            solid_capstyle="butt",
            zorder=3,
            label="_range",
        )
        text = f"{mark.label} [{mark.first}, {mark.last}]"
        if max(start - left, right - end) < 0.0155 * len(text) * (right - left):  # no room on either side: below
            x, shift, align = (start + end) / 2, (0, -7.5), "center"
        elif right - end > start - left:
            x, shift, align = end, (4, 0), "left"
        else:
            x, shift, align = start, (-4, 0), "right"
        ax.annotate(
            text,
            (x, y),
            xycoords=ax.get_xaxis_transform(),
            xytext=shift,
            textcoords="offset points",
            ha=align,
            va="center",
            fontsize=7.5,
        )
