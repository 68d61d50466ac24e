"""Figure of safety under pressure: refusal against prefilled tokens, and under suffixes, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from safecircuits.base.record import Record, Recorded, records_of
from safecircuits.plots.style import MUTED, RC, axes_or_new, legend_above, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (4.6, 2.9)


@styled
def plot_pressure(tables: Recorded | Mapping[str, Recorded | Record], *, ax: Axes | None = None) -> Axes:
    """Refusal rate with its 95 % interval against the number of compliant tokens the answer was made to start with.

    One colour a table. Solid is without, dashed with the system prompt. Where suffixes were tried, diamonds at the
    right show prompts that are refused with every one of them.

    Args:
        tables: one ``Pressure``, or several by name (before and after an intervention) with the same conditions.
    """
    named = records_of(tables if isinstance(tables, Mapping) else {"": tables})
    ax = axes_or_new(ax, SIZE)
    colors = RC["axes.prop_cycle"].by_key()["color"]
    steps = sorted({row["prefilled"] for table in named.values() for row in table["refusal"]})
    at_suffix = steps[-1] + 1.5
    drawn_suffix = drawn_system = False
    for i, table in enumerate(named.values()):
        color, shift = colors[i % len(colors)], 0.08 * (i - (len(named) - 1) / 2)
        for system in dict.fromkeys(row["system"] for row in table["refusal"]):
            drawn_system |= system
            style = "--" if system else "-"
            chosen = [row for row in table["refusal"] if row["system"] == system]
            marks = [(row["prefilled"] + shift, row) for row in sorted(chosen, key=lambda row: int(row["prefilled"]))]
            ax.plot([x for x, _ in marks], [r["rate"] for _, r in marks], style, marker="o", color=color, label="_rate")
            if worst := [row for row in table["any_suffix"] if row["system"] == system]:
                drawn_suffix = True
                x = at_suffix + shift + (0.2 if system else 0)
                face = "none" if system else color
                ax.plot(x, worst[0]["rate"], "D", color=color, markerfacecolor=face, label="_suffix")
                marks.append((x, worst[0]))
            for x, row in marks:
                ax.vlines(x, *row["interval"], color=color, linewidth=1, alpha=0.6, zorder=1)
    percent_axis(ax, "y", "malicious refused (%)")
    ticks = [*map(float, steps), *([at_suffix] if drawn_suffix else [])]
    labels = [*map(str, steps), *(["worst\nsuffix"] if drawn_suffix else [])]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.set_xticks(ticks, labels)
    ax.set_xlabel("compliant tokens the answer starts with" if len(steps) > 1 else "")
    handles = [Line2D([], [], color=colors[i % len(colors)], label=n) for i, n in enumerate(named) if n]
    if drawn_system:
        handles += [Line2D([], [], color=MUTED, linestyle=s, label=f"{w} system prompt") for s, w in _SYSTEM]
    if handles:
        legend_above(ax, 2, handles=handles)
    return ax


_SYSTEM: tuple[tuple[Literal["-", "--"], str], ...] = (("-", "without"), ("--", "with"))
