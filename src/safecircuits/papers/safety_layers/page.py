"""The report of a Safety Layers study: the paper's figures and tables for this model, beside the published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from safecircuits.base.text import percent
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.evaluate import Behavior
from safecircuits.layers.localization import Localization
from safecircuits.layers.malicious_check import MaliciousCheck
from safecircuits.papers.page import StudyPage, behavior_exhibit, compared_table, finetuning_exhibit
from safecircuits.papers.safety_layers.conclusions import conclusions
from safecircuits.papers.safety_layers.parts import SafetyLayersStudy
from safecircuits.papers.safety_layers.published import add_published
from safecircuits.papers.safety_layers.saved import saved_study
from safecircuits.plots.attention import attention_panels
from safecircuits.plots.decision import plot_decision
from safecircuits.plots.layers import plot_sweeps
from safecircuits.plots.pairs import comparison_figure, pair_panels
from safecircuits.plots.style import styled
from safecircuits.report import captions, tables
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.results.run import run_provenance

FEW_ANSWERED = 0.1
"""Below this share of malicious queries answered, a count cannot tell ranges apart; the paper's example has 6 %."""

DRAWN_ARMS = ("full", "sppft", "decision layers", "nfft", "other_block", "lisa")
"""More lines than these cannot be told apart; every arm is in the tables."""


@styled
def report_page(study: SafetyLayersStudy, provenance: Mapping[str, Any]) -> tuple[str, dict[str, Figure]]:
    """The report as HTML, and its figures by name."""
    made = StudyPage()
    for add in (_behavior, _existence, _localization, _checks, _attention, _transplant, _finetuning, add_published):
        add(study, made)
    shape = study.shape
    facts = {"architecture": shape.architecture, "layers": shape.n_layers, "d_model": shape.d_model}
    if study.planted is not None:
        facts["refusal planted in"] = f"layers {study.planted}"
    return made.render(f"Safety layers of “{study.name}”", facts, conclusions(study), provenance)


def saved_page(folder: Path, record: Mapping[str, Any]) -> str:
    """The report of a complete run of ``safecircuits study safety-layers``, from its saved results."""
    return report_page(saved_study(folder), run_provenance(record))[0]


def _behavior(study: SafetyLayersStudy, made: StudyPage) -> None:
    assert study.detectors is not None
    shares = study.detectors.shares
    rows = [[name, str(share.hits), str(share)] for name, share in shares.items()]
    least, most = (pick(shares.values(), key=lambda share: share.rate) for pick in (min, max))
    made.add(
        "behavior",
        "What the model refuses",
        "The paper does not say how it tells a refusal. The same completions of the over-rejection prompts are judged "
        "by every detector here, since the published counts depend on it.",
        [
            behavior_exhibit(made, "behavior", "Refusal, over-rejection and utility", study.behavior),
            Exhibit(
                None,
                "What each detector counts",
                f"Between {percent(least.rate)} and {percent(most.rate)} of the same answers, by detector.",
                [Table("Over-rejection prompts refused, by detector", ["detector", "refused", "share [95 %]"], rows)],
            ),
        ],
    )


def _existence(study: SafetyLayersStudy, made: StudyPage) -> None:
    found = study.gaps
    assert found is not None
    made.figures["gaps"] = comparison_figure(found)
    made.figures["pairs"] = pair_panels(found.gaps[study.name])
    stages = {name: {"gap_deg": gap.gap_deg.tolist()} for name, gap in found.gaps.items()}
    asked = found.provenance
    made.add(
        "gap",
        "Where harmful and harmless prompts part",
        "The residual stream after each layer at a prompt’s last token, compared between pairs of prompts: two "
        "normal ones (N–N), two malicious ones (M–M), one of each (N–M), over all pairs. The gap is how much wider the "
        f"N–M angle is. {asked['normal']['n']} normal and {asked['malicious']['n']} malicious prompts; bands: "
        "bootstrap intervals.",
        [
            Exhibit("gaps", "Similarity and angle gap", found.verdict.replace("\n", ". ") + ".", [tables.gaps(stages)]),
            Exhibit("pairs", "N–N, M–M and N–M similarity", f"{study.name}: mean and standard deviation over pairs."),
        ],
    )


def _localization(study: SafetyLayersStudy, made: StudyPage) -> None:
    exhibits = []
    for number, (name, found) in enumerate(study.searches.items()):
        record = found.record()
        plot_sweeps(record, ax=made.axes(f"sweeps_{number}"))
        caption = f"{name}. {captions.sweeps(record)}"
        exhibits.append(Exhibit(f"sweeps_{number}", name, caption, tables.sweeps(record)))
    if study.decision is not None:
        plot_decision(study.decision, planted=study.planted, ax=made.axes("decision"))
        verdict = study.decision.verdict
        exhibits.append(Exhibit("decision", "Decision carried by patching after each layer", f"Decision {verdict}."))
    exhibits.append(Exhibit(None, "Ranges", "All ranges that the study found.", [_ranges(study)]))
    made.add(
        "localization",
        "Which layers refuse",
        f"Scaling a block by α and counting refusals of {len(study.located.baseline.refused)} prompts that only sound "
        "dangerous: the upper bound moves first, then the lower. Decision layers are found another way, by patching "
        "residual streams between harmful and harmless prompts layer by layer.",
        exhibits,
    )


def _ranges(study: SafetyLayersStudy) -> Table:
    assert study.gaps is not None
    onset = study.gaps.onsets[study.name]
    found: list[tuple[str, LayerRange | None, str]] = [
        ("onset of the gap", onset.layers if onset else None, "the paper’s first guess, by a written rule")
    ]
    found += [(f"scaling: {name}", sweep.layers, _alpha(sweep)) for name, sweep in study.searches.items()]
    if study.decision is not None:
        shares = study.decision.range_shares
        often = f"in {next(iter(shares.values())):.0%} of resamples" if shares else "within noise"
        found.append(("decision layers", study.decision.layers, f"by activation patching; {often}"))
    rows = [[name, str(block) if block else "none", note] for name, block, note in found]
    columns = ["method", "layers", "note"]
    if study.planted is not None:
        columns.insert(2, "overlap with planted")
        for row, (_, block, _) in zip(rows, found, strict=True):
            row.insert(2, f"{block.overlap(study.planted):.2f}" if block else "0.00")
    return Table("Ranges found", columns, rows)


def _alpha(found: Localization) -> str:
    note = f"α = {found.alpha:g}"
    note += "" if found.alpha_found else " (no α gave the spread asked for)"
    moved = found.provenance.get("substituted")
    if moved:
        note += "; behind a norm: " + ", ".join(f"{name} ({place})" for name, place in moved.items())
    if not found.located:
        return f"{note}; within noise of not scaling at all: not located"
    return note + ("; within noise of a neighbour" if found.within_noise else "")


def _checks(study: SafetyLayersStudy, made: StudyPage) -> None:
    assert study.check is not None
    assert study.too_far is not None
    counted = [
        _check_table(f"{title}, layers {study.block}", check)
        for title, check in (
            ("Malicious queries", study.check),
            ("Over-rejection prompts, scaled too far", study.too_far),
        )
    ]
    made.add(
        "checks",
        "Two checks of the scaled block",
        f"Malicious queries that are still answered with the block scaled ({_locates(study.check)}), and what happens "
        "when it is scaled too far.",
        [Exhibit(None, "Checks", f"Malicious queries: {study.check}.", counted)],
    )


def _locates(check: MaliciousCheck) -> str:
    """What the count of answered malicious queries can say of where layers are, from how many are answered unscaled."""
    before = check.answered[0]
    if not before.hits:
        return "none is answered unscaled, so that none can be answered less"
    if before.rate < FEW_ANSWERED:
        return "so few are answered at all that this locates nothing"
    return f"{before.hits} of {before.n} are answered unscaled"


def _check_table(title: str, check: MaliciousCheck) -> Table:
    rows = [
        [f"α = {point.alpha:g}" if point.layers else "unscaled", str(share), percent(point.degenerate)]
        for point, share in zip((check.before, check.after), check.answered, strict=True)
    ]
    return Table(title, ["", "answered [95 %]", "degenerate"], rows)


def _attention(study: SafetyLayersStudy, made: StudyPage) -> None:
    if not study.attention:
        return
    located = study.located.located
    dashed = f"Dashed: the located block {study.block}." if located else "No block was located."
    made.figures["attention"] = attention_panels(study.attention, safety_layers=study.block if located else None)
    made.add(
        "attention",
        "What the last token attends to",
        "Attention of the last token to a question’s words, mean over heads, each layer from its least to its most. "
        "The paper reads three stages off such maps; nothing is measured here.",
        [
            Exhibit(
                "attention",
                "Attention to the question by layer",
                dashed,
            )
        ],
    )


def _transplant(study: SafetyLayersStudy, made: StudyPage) -> None:
    table = study.transplant
    if table is None:
        return
    rows: dict[str, Behavior] = {"base": table.target}
    rows |= {f"with {row.name} {row.layers}": row.behavior for row in table.rows}
    rows[study.name] = table.source
    made.add(
        "transplant",
        "Layers put into the base model",
        f"The base model with blocks of {study.name}’s layers in place of its own. The paper moves halves.",
        [behavior_exhibit(made, "transplant", "Rates with transplanted layers", rows)],
    )


def _finetuning(study: SafetyLayersStudy, made: StudyPage) -> None:
    tuned = study.finetuning
    if tuned is None:
        return
    exhibits = []
    compared = tuned.compare()
    for number, scenario in enumerate(tuned.scenarios):
        table = compared_table([found for found in compared if found.scenario == scenario])
        exhibits.append(finetuning_exhibit(made, f"finetuning_{number}", tuned, scenario, DRAWN_ARMS, [table]))
    frozen = "; ".join(f"{arm}: {what}" for arm, what in tuned.frozen.items())
    seeds = len({run.seed for run in tuned.runs})
    made.add(
        "finetuning",
        "What fine-tuning leaves of refusal",
        f"The same fine-tuning with different parts frozen, {seeds} seeds. Compared with full fine-tuning at equal "
        "steps and, since an arm that learns less also forgets less, at equal loss on the task. "
        f"Frozen in each arm: {frozen}.",
        exhibits,
    )
