"""Figures with a line or a row a run, for the results where this is the natural way to see a difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from safecircuits.behavior.measured import Behavior
from safecircuits.layers.comparison import GapComparison
from safecircuits.layers.similarity import LayerGap
from safecircuits.plots.layers import plot_gap
from safecircuits.plots.loss import plot_loss, plot_rates_by_step
from safecircuits.plots.rates import plot_behavior
from safecircuits.plots.style import COLUMN, styled
from safecircuits.report.saved import SavedRun, frame_table, titled
from safecircuits.report.sections import Exhibit
from safecircuits.training.run import FinetuneRun
from safecircuits.units.groups import UnitGroups
from safecircuits.units.resampling import compare_groups

MAX_LINES = 8
"""More curves in one axis cannot be told apart."""


@styled
def overlays(runs: Sequence[SavedRun]) -> tuple[list[Exhibit], dict[str, Figure], set[str]]:
    """What to show, the figures it names, and the saved figures whose place these take."""
    exhibits: list[Exhibit] = []
    drawn: dict[str, Figure] = {}
    replaced: set[str] = set()
    kinds = [run.kinds() for run in runs]
    for name, kind in kinds[0].items():
        if any(found.get(name) != kind for found in kinds[1:]):
            continue
        results: dict[str, Any] = {run.name: run.result(name) for run in runs}
        first = next(iter(results.values()))
        if isinstance(first, LayerGap | GapComparison):
            drew = _gaps(results, drawn, name)
        elif isinstance(first, Behavior):
            drew = _behavior(results, drawn, name)
        else:
            exhibits += _groups(results) if isinstance(first, UnitGroups) else []
            continue
        exhibits += drew
        figures: dict[str, Any] = runs[0].record.get("figures", {})
        replaced |= {name, *(figure for figure, noted in figures.items() if name in noted["of"])}
    if all((run.folder / "results" / "finetune" / "run.json").is_file() for run in runs):
        exhibits += _training(runs, drawn)
        replaced |= {"losses", *(["curves"] if "overlay_curves" in drawn else [])}
    return exhibits, drawn, replaced


def _gaps(results: Mapping[str, LayerGap | GapComparison], drawn: dict[str, Figure], name: str) -> list[Exhibit]:
    curves: dict[str, LayerGap] = {}
    bands: dict[str, Any] = {}
    for run, result in results.items():
        found = result.gaps if isinstance(result, GapComparison) else {"": result}
        for model, gap in found.items():
            curve = f"{model} in {run}" if len(found) > 1 else run
            curves[curve] = gap
            if isinstance(result, GapComparison):
                bands[curve] = result.intervals[model]
    if len(curves) > MAX_LINES:
        return []
    drawn[f"overlay_{name}"] = figure = Figure(figsize=(5.2, 3.0))
    plot_gap(curves, onset=None, intervals=bands, ax=figure.subplots())
    label = "Angle gap by layer, one line a run"
    onsets = {curve: gap.onset() for curve, gap in curves.items()}
    found_in = "; ".join(f"{curve}: {f'onset {one}' if one else 'no onset'}" for curve, one in onsets.items())
    return [Exhibit(f"overlay_{name}", label, f"{label}{'' if name in ('gap', 'gaps') else f' ({name})'}. {found_in}.")]


def _behavior(results: Mapping[str, Behavior], drawn: dict[str, Figure], name: str) -> list[Exhibit]:
    drawn[f"overlay_{name}"] = figure = Figure(figsize=(COLUMN[0], 0.85 + 0.42 * len(results)))
    plot_behavior(dict(results), ax=figure.subplots())
    label = "Refusal, over-rejection and utility, one row a run"
    return [Exhibit(f"overlay_{name}", label, f"{titled(name)}: {label.lower()}, with 95 % intervals.")]


def _training(runs: Sequence[SavedRun], drawn: dict[str, Figure]) -> list[Exhibit]:
    trained = {run.name: FinetuneRun.load(run.folder / "results" / "finetune") for run in runs}
    drawn["overlay_losses"] = figure = Figure(figsize=(4.6, 2.6))
    plot_loss({name: run.losses for name, run in trained.items()}, ax=figure.subplots())
    labels = {"overlay_losses": "Training loss by step, one line a run"}
    curves = {name: run.evaluations for name, run in trained.items()}
    if all(any("malicious_refused" in row for row in rows) for rows in curves.values()):
        drawn["overlay_curves"] = figure = Figure(figsize=(4.6, 2.6))
        plot_rates_by_step(curves, ax=figure.subplots())
        labels["overlay_curves"] = "Malicious prompts refused by step, one line a run"
    return [Exhibit(name, label, f"{label}.") for name, label in labels.items()]


def _groups(results: Mapping[str, UnitGroups]) -> list[Exhibit]:
    if len({groups.shape for groups in results.values()}) > 1:
        return [Exhibit(None, "Units", "The runs are of models of different shape, whose units do not correspond.")]
    table = frame_table("Overlap of the groups over pairs of runs, beside chance", compare_groups(results).to_frame())
    return [Exhibit(None, "Units", "Whether the runs sort the same units into the same groups.", [table])]
