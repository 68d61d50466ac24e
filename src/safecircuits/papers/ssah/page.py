"""The report of an SSAH study: the paper's figures and tables for this model, beside the published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from safecircuits.base.stats import Share
from safecircuits.base.text import percent
from safecircuits.base.vocabulary import SITES
from safecircuits.papers.page import StudyPage, behavior_exhibit
from safecircuits.papers.ssah.conclusions import conclusions
from safecircuits.papers.ssah.parts import SsahResults
from safecircuits.papers.ssah.published import add_published
from safecircuits.papers.ssah.saved import saved_study
from safecircuits.papers.ssah.training_sections import (
    add_budget,
    add_enrichment,
    add_equal_budgets,
    add_freezing,
    add_transfers,
)
from safecircuits.papers.ssah.unit_sections import add_groups, add_pressures, add_removals, add_scores, add_stability
from safecircuits.plots.direction import plot_by_block, plot_by_token, plot_direction_gap
from safecircuits.plots.style import styled
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.results.run import run_provenance


@styled
def report_page(study: SsahResults, provenance: Mapping[str, Any]) -> tuple[str, dict[str, Figure]]:
    """The report as HTML, and its figures by name."""
    made = StudyPage()
    parts = (_behavior, _direction, add_scores, add_groups, add_removals, add_pressures, add_stability)
    for add in (*parts, add_freezing, add_transfers, add_budget, add_enrichment, add_equal_budgets, add_published):
        add(study, made)
    shape, s = study.shape, study.settings
    n_units = sum(shape.n_layers * shape.n_units(site) for site in SITES)
    facts = {
        "architecture": shape.architecture,
        "layers": shape.n_layers,
        "units": n_units,
        "groups": f"SCU {percent(s.scu)}, UCU {percent(s.ucu)}, RU {percent(s.ru)}",
        "scores": "; ".join(f"{name}: {cut}" for name, cut in s.cuts.items()),
        "seeds": len(s.seeds),
    }
    return made.render(f"Superficial safety alignment of “{study.name}”", facts, conclusions(study), provenance)


def saved_page(folder: Path, record: Mapping[str, Any]) -> str:
    """The report of a complete run of ``safecircuits study ssah``, from its saved results."""
    return report_page(saved_study(folder), run_provenance(record))[0]


def _behavior(study: SsahResults, made: StudyPage) -> None:
    made.add(
        "behavior",
        "What the models do",
        "Refusal of harmful prompts, over-rejection of harmless ones that sound dangerous, and known answers given "
        "exactly right, before anything is removed or trained.",
        [behavior_exhibit(made, "behavior", "Rates of each model", study.behavior)],
    )


def _direction(study: SsahResults, made: StudyPage) -> None:
    exhibits = []
    for number, (reading, found) in enumerate(study.probes.items()):
        names: dict[str, Any] = {"tokens": plot_by_token, "blocks": plot_by_block, "gap": plot_direction_gap}
        for kind, draw in names.items() if number == 0 else [("gap", plot_direction_gap)]:
            draw(found.probes, ax=made.axes(f"direction_{number}_{kind}"))
            label = {
                "tokens": "Distance at the last block by generated tokens (Figure 2), bands span the suffixes",
                "blocks": "Distance by block (Figure 3), bands span the suffixes",
                "gap": "Gap by block with 95 % intervals (Figure 4), above zero where the block leans to refusing",
            }[kind]
            exhibits.append(Exhibit(f"direction_{number}_{kind}", label, f"States: {reading}. {label}."))
    rows = [
        [
            reading,
            name,
            *(f"{float(probe.distance(side)[-1, -1]):.3f}" for side in ("benign", "malicious")),
            *(str(probe.gap().leaning.count(sign)) for sign in (1, -1, 0)),
            str(Share.of(probe.refused)),
            str(probe.agreement()) if probe.measured().any() else "–",
        ]
        for reading, found in study.probes.items()
        for name, probe in found.probes.items()
    ]
    columns = ["reading", "model", "d_benign", "d_malicious", "to refusing", "to answering", "neither"]
    columns += ["refused", "verdict agrees with the answer"]
    exhibits.append(
        Exhibit(
            None,
            "All readings",
            "At the last block and step; blocks by where they lean.",
            [Table("Reasoning direction", columns, rows)],
        )
    )
    suffixes = study.settings.suffixes
    made.add(
        "direction",
        "Which way the hidden states lean",
        "How far a refusing (benign) and a complying (malicious) opening move the hidden states of a harmful prompt: "
        "1 − cosine. A model that leans to refusing is moved less by the refusing one. The paper does not say which "
        "hidden states it compares, so several readings are shown; subtracting the query answers the objection that "
        f"what a prompt is about dominates the cosine. Refusing: {', '.join(suffixes.benign)}. Complying: "
        f"{', '.join(suffixes.malicious)}.",
        exhibits if study.probes else [],
    )
