"""The whole story in one picture: six panels."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from safecircuits.base.text import degrees, percent
from safecircuits.demo.layers import GAPS, LOCATED, PLANTED_LOCATED, planted_block, plot_planted
from safecircuits.demo.protecting import finetune_record
from safecircuits.demo.settings import SUBJECT, Demo
from safecircuits.demo.units import ABLATION, curves
from safecircuits.layers.localization import Localization
from safecircuits.plots.layers import plot_gap, plot_sweeps
from safecircuits.plots.rates import plot_finetune
from safecircuits.plots.style import MUTED, styled
from safecircuits.plots.units import plot_ablation, plot_ablation_curve

Panel = tuple[str, str, Callable[[Axes], Axes]]
"""What it shows in a few words, its number, and how it is drawn."""


@styled
def plot_overview(study: Demo) -> Figure:
    """The panels, three in a row."""
    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(12.0, 7.1), layout=spacing)
    for letter, (title, subtitle, draw), ax in zip("abcdef", _panels(study), figure.subplots(2, 3).flat, strict=True):
        draw(ax)
        # Letter, title and subtitle stand above the axis, clear of a one-row legend, at one height in every panel.
        ax.set_title(f"{letter}   {title}", loc="left", pad=36, fontsize=10.5, fontweight="bold")
        line = ax.annotate(subtitle, (0, 1), (0, 23), "axes fraction", "offset points", color=MUTED)
        line.set_in_layout(False)  # it may run as far right as its panel; the layout must not shrink the axis for it
        if legend := ax.get_legend():
            legend.set_in_layout(False)
    return figure


def _panels(study: Demo) -> list[Panel]:
    gaps = {name: study[GAPS][name] for name in ("base", SUBJECT)}
    largest = ", ".join(f"{name} {degrees(float(gap.gap_deg.max()))}" for name, gap in gaps.items())
    table = study[ABLATION]
    intact = table.intact.rates
    left = next((row.behavior.rates for row in table.rows if row.name == "SCU"), intact)
    planted, swept, onset = planted_block(), study[PLANTED_LOCATED], study[GAPS]["planted-layers"].onset()
    overlaps = [*([f"onset {percent(onset.layers.overlap(planted))}"] if onset else [])]
    overlaps.append(f"sweeps {percent(swept.layers.overlap(planted))}")
    top, random, truth = curves(study)
    bare = [{key: value for key, value in row.items() if key != "planted_share"} for row in top]
    record = finetune_record(study)
    shown = ("malicious_refused", "utility", "new_task")
    return [
        ("Where harmful and harmless part", f"largest gap: {largest}", lambda ax: plot_gap(gaps, ax=ax)),
        ("Safety layers by scaling", located_line(study[LOCATED]), lambda ax: plot_sweeps(study[LOCATED], ax=ax)),
        (
            "Removing groups of units",
            f"SCU: refusal {percent(intact['malicious_refused'])} → {percent(left['malicious_refused'])}, "
            f"utility {percent(intact['utility'])} → {percent(left['utility'])}",
            lambda ax: plot_ablation(table, ax=ax),
        ),
        (
            "A planted block, and what is found",
            f"overlap with {planted}: {', '.join(overlaps)}",
            lambda ax: plot_planted(study, ax),
        ),
        (
            "Removing units of a planted model",
            _curve_line(top),
            lambda ax: plot_ablation_curve(bare, random, planted=truth, ax=ax),
        ),
        (
            "After fine-tuning on a harmless task",
            f"mean and 95 % interval over {len(study.settings.seeds)} seeds",
            lambda ax: plot_finetune(record, metrics=shown, ax=ax),
        ),
    ]


def located_line(found: Localization) -> str:
    """What scaling located, in a line."""
    scaled = f"scaled by α = {found.alpha:g}; "
    if not found.located:
        return f"{scaled}nothing located: within noise of not scaling"
    return f"{scaled}located {found.layers}{', within noise of another' if found.within_noise else ''}"


def _curve_line(rows: list[dict[str, float]]) -> str:
    below = next((row for row in rows if row["malicious_refused"] < 0.5), None)
    if below is None:
        return f"refusal at or above 50 % up to {rows[-1]['removed']:.0f} units"
    return f"refusal below 50 % from {below['removed']:.0f} units, utility {percent(below['utility'])} there"
