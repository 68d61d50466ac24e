"""The demo on a real model in one picture: four panels, each with the known answer."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from safecircuits.base.text import percent
from safecircuits.demo.real.behavior import rates
from safecircuits.demo.real.layers import DECISION, GAPS, planted_range
from safecircuits.demo.real.protecting import FINETUNING, TASK, finetune_record
from safecircuits.demo.real.settings import BASE, RealDemo
from safecircuits.demo.real.units import REMOVED
from safecircuits.plots.decision import plot_decision
from safecircuits.plots.layers import plot_gap
from safecircuits.plots.rates import plot_behavior, plot_finetune
from safecircuits.plots.removal import plot_removal
from safecircuits.plots.style import MUTED, styled

Panel = tuple[str, str, Callable[[Axes], Axes]]
"""What it shows in a few words, its number, and how it is drawn."""


@styled
def plot_overview(study: RealDemo) -> Figure:
    """The panels, three in the first row and two in the second."""
    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(12.0, 7.4), layout=spacing)
    grid = figure.add_gridspec(2, 6)
    places = [grid[0, 0:2], grid[0, 2:4], grid[0, 4:6], grid[1, 0:3], grid[1, 3:6]]
    for letter, (title, subtitle, draw), place in zip("abcde", _panels(study), places, strict=True):
        ax = figure.add_subplot(place)
        draw(ax)
        ax.set_title(f"{letter}   {title}", loc="left", pad=36, fontsize=10.5, fontweight="bold")
        line = ax.annotate(subtitle, (0, 1), (0, 23), "axes fraction", "offset points", color=MUTED)
        line.set_in_layout(False)
    return figure


def _panels(study: RealDemo) -> list[Panel]:
    known, removed, tuned = planted_range(study), study[REMOVED], study[FINETUNING]
    refused = {name: row["malicious_refused"] for name, row in rates(study).items()}
    decided = study[DECISION].layers
    overlap = decided.overlap(known) if decided and known else 0.0
    onset = study[GAPS][study.name].onset()
    found = "none" if decided is None else str(decided)
    best = min(removed.names[1:], key=lambda name: removed.refusal(name).rate)
    return [
        (
            "A real model, and refusal planted in it",
            f"malicious refused: {BASE} {percent(refused[BASE])}, planted {percent(refused[study.name])}",
            lambda ax: plot_behavior(rates(study), ax=ax),
        ),
        (
            "Where harmful and harmless part",
            f"planted {known}; onset {onset.layers if onset else 'none'}",
            lambda ax: plot_gap(study[GAPS], planted=known, ax=ax),
        ),
        (
            "Which layers decide",
            f"planted {known}; found {found}, overlap {overlap:.2f}",
            lambda ax: plot_decision(study[DECISION], planted=known, ax=ax),
        ),
        (
            "Removing units, and what it costs",
            f"least refusal left {percent(removed.refusal(best).rate)}, at a KL of {removed.moved(best):.2f}",
            lambda ax: plot_removal(removed.to_frame(), ax=ax),
        ),
        (
            f"After fine-tuning on {TASK}",
            f"{tuned.runs[0].steps} steps; task loss {tuned.runs[0].before['task_loss']:.2f} → "
            f"{tuned.mean(TASK, 'full', 'task_loss'):.2f}",
            lambda ax: plot_finetune(finetune_record(study), ax=ax),
        ),
    ]
