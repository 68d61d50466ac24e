"""Figures of the layer analyses: angle gap, pair similarities, and the sweeps that locate the safety layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

from matplotlib.ticker import MaxNLocator

from safecircuits.base.record import Block, Record, Recorded, bounds, gap_degrees, number, pair_statistics, record_of
from safecircuits.plots.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAIR_STYLES,
    PAPER,
    PURPLE,
    SKY,
    STAGE_COLORS,
    VERMILLION,
    RangeMark,
    axes_or_new,
    label_ends,
    layer_axis,
    legend_above,
    mark_ranges,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# As localization does: beyond this share of degenerate completions a model is broken, not more careful.
MAX_DEGENERATE = 0.10

_SPARE_COLORS = (GREEN, PURPLE, ORANGE, SKY, VERMILLION, BLUE)
_MARKERS = "osD^vPX"


@styled
def plot_gap(
    gaps: Recorded | Mapping[str, Recorded | Record | Sequence[float]],
    *,
    onset: Mapping[str, Block | None] | Block | Literal["auto"] | None = "auto",
    intervals: Mapping[str, Recorded | Record] | None = None,
    planted: Block | None = None,
    localized: Block | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The angle gap (mean N–M angle minus mean N–N angle, degrees) by layer, one line a model.

    Args:
        gaps: one ``LayerGap``, or by name such results, records with ``gap_deg``, or plain sequences with one value a
            layer.
        onset: blocks to mark, by the name of their curve, or one block for all; ``"auto"`` takes the ``onset`` of each
            record; None marks nothing.
        intervals: ``low`` and ``high`` of each layer by the name of their curve, drawn as bands; those that the
            records have themselves (``gap_low``, ``gap_high``) unless given.
        planted: the block where refusals are by construction, if that is known.
        localized: the block that the sweeps found.
    """
    gaps = gaps if isinstance(gaps, Mapping) else {"gap": gaps}
    if not gaps:
        raise ValueError("no gap curve to plot")
    ax = axes_or_new(ax)
    curves = {name: gap_degrees(gap) for name, gap in gaps.items()}
    colors = model_colors(curves)
    for (name, curve), marker in zip(curves.items(), cycle(_MARKERS)):
        if band := _band(gaps[name], (intervals or {}).get(name)):
            ax.fill_between(range(len(curve)), *band, color=colors[name], alpha=0.18, linewidth=0)
        ax.plot(range(len(curve)), curve, marker + "-", color=colors[name], label=name, markeredgecolor=PAPER)
    n_layers = max(map(len, curves.values()))
    layer_axis(ax, n_layers)
    ax.axhline(0, color=MUTED, linewidth=0.7, zorder=1)
    ax.set_ylabel("angle gap, N–M minus N–N (°)")

    marks = []
    if planted_bounds := bounds(planted):
        marks.append(RangeMark("planted", *planted_bounds, INK, known=True))
    found = {name: block for name, block in _onsets(gaps, onset).items() if block is not None}
    for name, block in found.items():
        marks.append(RangeMark("onset", *block, colors.get(name, MUTED)))  # the curve's colour says whose
    if localized_bounds := bounds(localized):
        marks.append(RangeMark("located", *localized_bounds, ORANGE))
    mark_ranges(ax, marks)
    if len(curves) > 1:
        depths = set(map(len, curves.values()))
        if len(depths) == 1:
            label_ends(ax, n_layers - 0.5, [(name, curve[-1]) for name, curve in curves.items()])
        else:
            legend_above(ax, 2)
    return ax


def _band(gap: Any, interval: Recorded | Record | None) -> tuple[Sequence[float], Sequence[float]] | None:
    """The interval that is given for a curve, or the one that its own record has."""
    if interval is not None:
        found = record_of(interval)
        return found["low"], found["high"]
    record = {} if isinstance(gap, Sequence) else record_of(gap)
    return (record["gap_low"], record["gap_high"]) if "gap_low" in record else None


def model_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each model: that of the embedded stage of this name, else one that no other model has taken."""
    names = list(names)
    taken = {STAGE_COLORS[name] for name in names if name in STAGE_COLORS}
    spare = cycle([color for color in _SPARE_COLORS if color not in taken] or _SPARE_COLORS)
    return {name: STAGE_COLORS.get(name) or next(spare) for name in names}


def _onsets(gaps: Mapping[str, Any], onset: Any) -> dict[str, tuple[int, int] | None]:
    if onset is None:
        return {}
    if onset == "auto":
        records = {name: record_of(gap) for name, gap in gaps.items() if not isinstance(gap, Sequence)}
        return {name: bounds(record.get("onset")) for name, record in records.items()}
    if isinstance(onset, Mapping):
        return {name: bounds(block) for name, block in onset.items()}
    return {next(iter(gaps)) if len(gaps) == 1 else "onset": bounds(onset)}


@styled
def plot_pair_curves(
    gap: Recorded | Record, *, kinds: Sequence[str] = ("nn", "mm", "nm"), ax: Axes | None = None
) -> Axes:
    """Cosine similarity of N–N, M–M and N–M pairs by layer: the mean over pairs, with a band of ±1 standard deviation.

    Args:
        gap: a ``LayerGap``, or a record with ``nn_mean``, ``nn_std`` and so on, one value a layer.
        kinds: which of ``nn``, ``mm`` and ``nm`` to draw.
    """
    ax = axes_or_new(ax)
    statistics = pair_statistics(gap)
    n_layers = 0
    for kind in kinds:
        if kind not in PAIR_STYLES:
            raise ValueError(f"a kind of pair is one of {', '.join(PAIR_STYLES)}, not {kind!r}")
        if f"{kind}_mean" not in statistics:
            continue
        label, color, marker = PAIR_STYLES[kind]
        mean = statistics[f"{kind}_mean"]
        n_layers = max(n_layers, len(mean))
        if f"{kind}_std" in statistics:
            std = statistics[f"{kind}_std"]
            low = [m - s for m, s in zip(mean, std, strict=True)]
            high = [m + s for m, s in zip(mean, std, strict=True)]
            ax.fill_between(range(len(mean)), low, high, color=color, alpha=0.15, linewidth=0)
        ax.plot(range(len(mean)), mean, marker=marker, color=color, label=label, markeredgecolor=PAPER)
    layer_axis(ax, n_layers)
    ax.set_ylabel("cosine similarity")
    if len(kinds) > 1:
        legend_above(ax, len(kinds))
    return ax


@styled
def plot_sweeps(localization: Recorded | Record, ax: Axes | None = None) -> Axes:
    """Refused over-rejection prompts while one bound of the scaled block moves and the other stays.

    Error bars are the 95 % interval of the paired difference to the unscaled model. The large mark is each sweep's
    extreme; a hollow one has more than a tenth of degenerate completions. The block is marked only if scaling it is
    apart from not scaling at all.

    Args:
        localization: a ``Localization``, or its record.
    """
    ax = axes_or_new(ax)
    record = record_of(localization)
    baseline = float(record["baseline_refused"])
    looks: tuple[tuple[str, str, str, str, str], ...] = (
        ("upper", "last", "first", "^", ORANGE),
        ("lower", "first", "last", "v", SKY),
    )
    for bound, moving, fixed, marker, color in looks:
        rows = sorted(record.get(bound) or [], key=lambda row: int(row[moving]))
        if not rows:
            continue
        shift = 0.07 if bound == "upper" else -0.07
        x = [row[moving] + shift for row in rows]
        y = [float(row["refused"]) for row in rows]
        label = f"{moving} layer moves, {fixed} is {rows[0][fixed]}"
        ax.plot(x, y, color=color, marker=marker, markersize=5.5, label=label, zorder=3)
        for position, count, row in zip(x, y, rows, strict=True):
            low, high = number(row.get("change_low")), number(row.get("change_high"))
            if low is not None and high is not None:
                ax.vlines(position, baseline + low, baseline + high, color=color, linewidth=1, alpha=0.8)
            broken = (number(row.get("degenerate")) or 0.0) > MAX_DEGENERATE
            if row.get("best") or broken:
                face = PAPER if broken else color
                size = 9 if row.get("best") else 5
                ax.plot(
                    position, count, marker, markersize=size, color=color, markerfacecolor=face, zorder=4, label="_mark"
                )
    n_prompts = record.get("n_prompts")
    ax.axhline(baseline, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ax.set_ylabel(f"over-rejection prompts refused (of {n_prompts})" if n_prompts else "over-rejection prompts refused")
    ax.set_xlabel("layer of the moving bound")
    _whole_layers(ax, record)
    ax.annotate(
        f"{baseline:.0f}\nunscaled",
        (1, baseline),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=MUTED,
    )
    if (block := bounds(record.get("layers"))) and record.get("located", True):
        mark_ranges(ax, [RangeMark("located", *block, ORANGE)])
    legend_above(ax, 2)
    return ax


def _whole_layers(ax: Axes, record: Record) -> None:
    """Room for every position of both bounds, on whole layers."""
    ends = [
        int(row[end]) for bound in ("upper", "lower") for row in record.get(bound) or [] for end in ("first", "last")
    ]
    ends += list(bounds(record.get("layers")) or ())
    ax.set_xlim(min(ends, default=0) - 0.6, max(ends, default=0) + 0.6)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    ax.grid(True, axis="y")
