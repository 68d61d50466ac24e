"""The whole story in one picture: six panels, those of them that the results have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from safecircuits.base.record import Record, arms, curve, number
from safecircuits.base.text import degrees, layers, percent
from safecircuits.plots.layers import plot_gap, plot_planted_layers, plot_sweeps
from safecircuits.plots.rates import plot_finetune
from safecircuits.plots.style import MUTED, styled
from safecircuits.plots.units import plot_ablation, plot_ablation_curve
from safecircuits.report.captions import gap_stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Panel:
    """One panel: what it shows in a few words, its number, and how it is drawn."""

    title: str
    subtitle: str
    draw: Callable[[Axes], Axes]


@styled
def plot_overview(results: Record) -> Figure | None:
    """The panels that ``results`` allows, three in a row; None if it allows none."""
    shown = panels(results)
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(4.0 * columns, 3.55 * rows), layout=spacing)
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat[len(shown) :]:
        ax.remove()
    for letter, panel, ax in zip("abcdef", shown, grid.flat, strict=False):
        panel.draw(ax)
        _head(ax, letter, panel)
    return figure


def _head(ax: Axes, letter: str, panel: Panel) -> None:
    """Letter, title and subtitle above the axis, clear of a one-row legend, at the same height in every panel."""
    ax.set_title(f"{letter}   {panel.title}", loc="left", pad=36, fontsize=10.5, fontweight="bold")
    line = ax.annotate(panel.subtitle, (0, 1), (0, 23), "axes fraction", "offset points", color=MUTED)
    line.set_in_layout(False)  # it may run as far right as its panel; the layout must not shrink the axis for it
    if legend := ax.get_legend():
        legend.set_in_layout(False)


def panels(results: Record) -> list[Panel]:
    """The overview's panels in order, for the parts that are present."""
    found = []
    similarity = results.get("similarity") or {}
    stages = gap_stages(similarity)
    if stages:
        pair = {name: row for name, row in stages.items() if name in ("base", "aligned")} or stages
        onset = {name: row.get("onset") for name, row in pair.items()}
        found.append(
            Panel(
                "Where harmful and harmless part",
                _gap_line(pair),
                lambda ax: plot_gap(pair, onset=onset, ax=ax),
            )
        )
    if localization := results.get("localization"):
        found.append(
            Panel(
                "Safety layers by scaling",
                _sweeps_line(localization),
                lambda ax: plot_sweeps(localization, ax=ax),
            )
        )
    units = results.get("units") or {}
    if units.get("ablation"):
        found.append(
            Panel(
                "Removing groups of units",
                _ablation_line(units),
                lambda ax: plot_ablation(units["ablation"], units.get("random_control"), ax=ax),
            )
        )
    planted = results.get("planted") or {}
    if (block := planted.get("layers")) and "planted-layers" in stages:
        found.append(
            Panel(
                "A planted block, and what is found",
                _planted_line(block),
                lambda ax: plot_planted_layers(block, stages["planted-layers"], ax=ax),
            )
        )
    if (neurons := planted.get("units")) and neurons.get("curve"):
        found.append(
            Panel(
                "Removing units of a planted model",
                _curve_line(neurons),
                lambda ax: plot_ablation_curve(
                    [{k: v for k, v in row.items() if k != "planted_share"} for row in neurons["curve"]],
                    neurons.get("random_curve"),
                    planted=neurons.get("remove_planted"),
                    ax=ax,
                ),
            )
        )
    finetune = results.get("finetune") or {}
    if arms(finetune):
        found.append(
            Panel(
                "After fine-tuning on a harmless task",
                _finetune_line(finetune),
                lambda ax: plot_finetune(finetune, metrics=("malicious_refused", "utility", "new_task"), ax=ax),
            )
        )
    return found


def _gap_line(stages: Record) -> str:
    listed = [f"{name} {degrees(max(row['gap_deg']))}" for name, row in stages.items()]
    return f"largest gap: {', '.join(listed)}"


def _sweeps_line(record: Record) -> str:
    scaled = f"scaled by α = {record['alpha']:g}; " if number(record.get("alpha")) is not None else ""
    if not record.get("located", True):
        return f"{scaled}nothing located: within noise of not scaling"
    noise = ", within noise of another" if record.get("within_noise") else ""
    return f"{scaled}located {layers(record.get('layers'))}{noise}"


def _ablation_line(units: Record) -> str:
    row, intact = units["ablation"].get("SCU"), units["ablation"].get("nothing")
    if not row or not intact:
        return ""
    return (
        f"SCU: refusal {percent(intact.get('malicious_refused'))} → {percent(row.get('malicious_refused'))}, "
        f"utility {percent(intact.get('utility'))} → {percent(row.get('utility'))}"
    )


def _planted_line(block: Record) -> str:
    named = (("onset", "onset", "onset_overlap"), ("sweeps", "localized", "overlap"))
    listed = [
        f"{name} {percent(number(block[overlap]))}"
        for name, key, overlap in named
        if block.get(key) and number(block.get(overlap)) is not None
    ]
    return f"overlap with {layers(block.get('planted'))}: {', '.join(listed)}" if listed else ""


def _curve_line(neurons: Record) -> str:
    rows = curve(neurons["curve"])
    known = [rate for row in rows if (rate := number(row.get("malicious_refused"))) is not None]
    if not known:
        return ""
    below = next((row for row in rows if (number(row.get("malicious_refused")) or 0.0) < 0.5), None)
    if below is None:
        return f"refusal at or above 50 % up to {rows[-1]['removed']} units"
    return f"refusal below 50 % from {below['removed']} units, utility {percent(number(below.get('utility')))} there"


def _finetune_line(finetune: Record) -> str:
    seeds = {len(row.get("malicious_refused_seeds") or ()) for row in arms(finetune).values()} - {0}
    return f"mean and 95 % interval over {seeds.pop()} seeds" if len(seeds) == 1 else "mean and 95 % interval"
