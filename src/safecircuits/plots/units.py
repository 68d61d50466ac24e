"""Figures of the unit analyses: what removing a group does, how soon, and where the groups lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from safecircuits.base.record import Record, Recorded, ablations, curve, interval, number, record_of
from safecircuits.base.text import percent
from safecircuits.plots.style import (
    COLUMN,
    GROUP_COLORS,
    INK,
    METRICS,
    MUTED,
    PAPER,
    Metric,
    axes_or_new,
    cells_by_layer,
    legend_above,
    percent_axis,
    readable,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PRINTED_LAYERS = 16
"""Up to this many layers the unit map prints its counts."""

SITE_NAMES = {"mlp": "MLP", "attn": "heads", "expert": "experts", "shared": "shared", "router": "router"}


@styled
def plot_ablation(
    ablation: Recorded | Record,
    random_control: Record | None = None,
    *,
    metrics: Sequence[str] = ("malicious_refused", "utility"),
    ax: Axes | None = None,
) -> Axes:
    """Rates left without each group (bars) and without as many random units (diamonds: the mean over draws).

    Args:
        ablation: an ``AblationTable``, or a record by group of ``units`` and rates between 0 and 1; ``nothing`` is the
            intact model. Error bars are drawn where a rate has an interval.
        random_control: the same for random units, by group; an ``AblationTable`` brings its own.
        metrics: rates to show, by name.
    """
    ax = axes_or_new(ax)
    groups, controls = ablations(ablation)
    controls = {**controls, **(random_control or {})}
    width = 0.8 / len(metrics)
    for slot, name in enumerate(metrics):
        metric = METRICS[name]
        offset = (slot - (len(metrics) - 1) / 2) * width
        shown = [(i, group, row) for i, (group, row) in enumerate(groups.items()) if number(row.get(name)) is not None]
        ax.bar(
            [i + offset for i, _, _ in shown],
            [row[name] for _, _, row in shown],
            width * 0.92,
            color=metric.color,
            label=metric.label,
        )
        for i, group, row in shown:
            _finish_bar(ax, i + offset, row, controls.get(group, {}), name)
    ax.set_xticks(range(len(groups)), [_removed(group, row) for group, row in groups.items()])
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel("units removed")
    percent_axis(ax)
    ax.set_ylim(0, 1.14)
    handles, labels = ax.get_legend_handles_labels()
    if controls:
        handles.append(Line2D([], [], **_DIAMOND))
        labels.append("random units")
    legend_above(ax, 3, handles=handles, labels=labels)
    return ax


_DIAMOND: dict[str, Any] = {
    "marker": "D",
    "markersize": 4.5,
    "linestyle": "none",
    "color": PAPER,
    "markeredgecolor": INK,
    "markeredgewidth": 1,
}


def _removed(group: str, row: Record) -> str:
    units = row.get("units")
    return f"{group}\n{units}" if units else f"{group}\n"


def _finish_bar(ax: Axes, x: float, row: Record, control: Record, name: str) -> None:
    """The interval, the random control, and the value in percent above whatever is highest near the bar's end."""
    height = top = float(row[name])
    if spread := interval(row, name):
        ax.vlines(x, *spread, color=INK, linewidth=1)
        top = max(top, spread[1])
    marks = list(control.get(f"{name}_draws", ()))
    for draw in marks:
        ax.plot(x, draw, "o", markersize=2, color=INK, zorder=3, label="_draw")
    if (random := number(control.get(name))) is not None:
        ax.plot(x, random, **_DIAMOND, zorder=4, label="_random")
        marks.append(random)
    for mark in sorted(marks):
        if -0.06 < mark - top < 0.14:
            top = max(top, mark + 0.02)
    ax.annotate(
        f"{int(100 * height + 0.5)}",
        (x, top),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7.5,
    )


@styled
def plot_ablation_curve(
    points: Mapping[int, Recorded | Record] | Sequence[Record],
    random_points: Mapping[int, Recorded | Record] | Sequence[Record] | None = None,
    *,
    planted: Record | None = None,
    metrics: Sequence[str] = ("malicious_refused", "utility"),
    ax: Axes | None = None,
) -> Axes:
    """Rates left against the number of removed units, highest S − U first; dashed for as many random units.

    Args:
        points: what ``ablation_curve`` returns, or records of ``removed``, optionally ``share`` (of all units),
            rates between 0 and 1, and ``planted_share`` (of the removed units, those that were planted: dotted).
        random_points: the same for random units.
        planted: ``removed`` and rates with exactly the planted units removed: stars.
        metrics: rates to show, by name.
    """
    ax = axes_or_new(ax)
    rows, random_rows = curve(points), curve(random_points or [])
    handles = []
    for metric in (METRICS[name] for name in metrics):
        _line(ax, random_rows, metric, dashed=True)
        _line(ax, rows, metric, dashed=False)
        if planted is not None and number(planted.get(metric.key)) is not None:
            ax.plot(planted["removed"], planted[metric.key], **_star(metric.color), zorder=5, label="_planted")
        handles.append(
            Line2D([], [], color=metric.color, marker=metric.marker, markeredgecolor=PAPER, label=metric.label)
        )
    if random_rows:
        handles.append(Line2D([], [], color=MUTED, linestyle=_DASHES, label="random"))
    if planted is not None:
        handles.append(Line2D([], [], **_star(MUTED), label="planted"))
    found = [row for row in rows if number(row.get("planted_share")) is not None]
    if found:
        x, y = [row["removed"] for row in found], [row["planted_share"] for row in found]
        ax.plot(x, y, ":", color=INK, linewidth=1.2, label="planted_share", zorder=1)
        handles.append(Line2D([], [], linestyle=":", color=INK, linewidth=1.2, label="planted among removed"))
    _removed_axis(ax, [*rows, *random_rows])
    percent_axis(ax, label="share (%)" if found else "share of prompts (%)")
    legend_above(ax, 3 if found else len(handles), handles=handles)
    return ax


_DASHES = (0, (3, 2))


def _star(color: str) -> dict[str, Any]:
    return {"marker": "*", "markersize": 11, "linestyle": "none", "color": color, "markeredgecolor": PAPER}


def _line(ax: Axes, rows: Sequence[Record], metric: Metric, *, dashed: bool) -> None:
    rows = [row for row in rows if number(row.get(metric.key)) is not None]
    x, y = [row["removed"] for row in rows], [row[metric.key] for row in rows]
    look: dict[str, Any] = {"linestyle": "-", "markeredgecolor": PAPER}
    if dashed:
        look = {"linestyle": _DASHES, "linewidth": 1.1, "markerfacecolor": PAPER, "markersize": 3.5}
    label = f"random {metric.label}" if dashed else metric.label
    ax.plot(x, y, marker=metric.marker, color=metric.color, label=label, zorder=2 if dashed else 3, **look)
    intervals = [(row["removed"], found) for row in rows if (found := interval(row, metric.key))]
    if intervals:
        low, high = [low for _, (low, _) in intervals], [high for _, (_, high) in intervals]
        ax.fill_between([x for x, _ in intervals], low, high, color=metric.color, alpha=0.12, linewidth=0)


def _removed_axis(ax: Axes, rows: Sequence[Record]) -> None:
    """Numbers of removed units on a logarithmic axis, ticks where something was measured; zero has its own place."""
    shares = {int(row["removed"]): number(row.get("share")) for row in reversed(rows)}
    counts = sorted(shares)
    positive = [count for count in counts if count > 0]
    if positive and counts[0] == 0:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.4)
    elif len(positive) > 1:
        ax.set_xscale("log")
    labels = [f"{n}\n{percent(s)}" if (s := shares[n]) is not None else str(n) for n in counts]
    ax.set_xticks(counts, readable(ax, counts, labels, least=0.08))
    ax.set_xticks([], minor=True)
    with_share = any(share is not None for share in shares.values())
    ax.set_xlabel("units removed (and their share of all)" if with_share else "units removed")


@styled
def plot_unit_map(groups: Recorded | Record, *, ax: Axes | None = None) -> Axes:
    """Where the groups lie: one row a site and group, one column a layer, counts in the cells.

    A cell's shade is its count relative to the largest of its row, so that rare groups show as well as common ones.

    Args:
        groups: ``UnitGroups``, or counts by site and group, one a layer (``{"mlp": {"SCU": [...], ...}, ...}``).
    """
    counts = record_of(groups)
    rows = [(site, group, row) for site, by_group in counts.items() for group, row in by_group.items()]
    if not rows:
        raise ValueError("no unit groups to map")
    n_layers = max(len(row) for _, _, row in rows)
    ax = axes_or_new(ax, (COLUMN[0], 0.7 + 0.27 * len(rows)))
    gap = 0.35  # between sites
    labels, positions = [], []
    for i, (site, group, row) in enumerate(rows):
        y = i + gap * list(counts).index(site)
        labels.append(f"{SITE_NAMES.get(site, site)}  {group}")
        positions.append(y)
        for layer, count in enumerate(row):
            shade = 0.6 * count / max(1, *row) if count else 0.0
            color = GROUP_COLORS.get(group, MUTED)
            ax.add_patch(
                Rectangle((layer - 0.47, y - 0.44), 0.94, 0.88, facecolor=color, alpha=0.04 + shade, linewidth=0)
            )
            if n_layers <= MAX_PRINTED_LAYERS:
                ax.text(layer, y, str(count), ha="center", va="center_baseline", fontsize=7.5)
    ax.set_yticks(positions, labels)
    ax.set(xlim=(-0.5, n_layers - 0.5), ylim=(positions[-1] + 0.5, -0.5), xlabel="layer")
    return cells_by_layer(ax)
