"""Which layers refuse (§3.4): scaling sweeps, and beside them decision layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from safecircuits.base.notices import notify
from safecircuits.base.text import join
from safecircuits.base.vocabulary import LayerRange
from safecircuits.hooks.scale import ComponentSet
from safecircuits.layers.decision import DecisionLayers, decision_layers
from safecircuits.layers.localization import Direction, Localization, localize
from safecircuits.layers.onset import search_start
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage, sweeps_exhibit
from safecircuits.papers.part import Part, Parts
from safecircuits.papers.safety_layers.gap import GAPS
from safecircuits.papers.safety_layers.settings import PAPER, SafetyLayers
from safecircuits.plots.decision import plot_decision
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.results.by_category import with_categories

WAYS: dict[str, tuple[ComponentSet, Direction]] = {
    "all matrices, up": ("all", "up"),
    "all matrices, down": ("all", "down"),
    "without the output projection, up": ("qkv+mlp", "up"),
}
"""Localizations: the method as written, its other direction, and what the published table was probably made with."""

NOT_LOCATED = "Scaling located nothing; the block is where a search of noise ended."


def located(study: SafetyLayers) -> Localization:
    """The paper's own localization; its layers are the block that the rest of the study is about."""
    return study[SEARCHES]["all matrices, up"]


def _search(study: SafetyLayers, name: str) -> Localization:
    s, (components, direction) = study.settings, WAYS[name]
    alpha: Any = s.alpha
    if isinstance(alpha, int | float) and direction == "down":
        alpha = 1 / alpha
    return localize(
        study.model,
        study.asked.over_rejection,
        search_start(study[GAPS].onsets[study.name], study.shape.n_layers),
        alpha=alpha,
        direction=direction if alpha == "search" else None,
        reach=s.reach,
        components=components,
        ordinary=study.asked.normal,
        **s.asking,
        resume=study.work(f"sweep_{list(WAYS).index(name)}.jsonl"),
        progress=True,
    )


def _tell(study: SafetyLayers) -> None:
    if not located(study).located:
        notify(
            f"scaling located nothing ({located(study).verdict}); what follows scales, moves and freezes the block "
            "at which the search ended, and what it says of it is inconclusive"
        )


def _decide(study: SafetyLayers) -> DecisionLayers:
    p = study.asked
    return decision_layers(study.model, p.normal, p.malicious, **study.settings.asking)


def _section(study: SafetyLayers, made: StudyPage) -> None:
    exhibits = []
    for number, (name, found) in enumerate(study[SEARCHES].items()):
        exhibits.append(sweeps_exhibit(made, f"sweeps_{number}", name, found, f"{name}. "))
    decision = study[DECISION]
    plot_decision(decision, planted=study.planted, ax=made.axes("decision"))
    label = "Decision carried by patching after each layer"
    exhibits.append(Exhibit("decision", label, f"Decision {decision.verdict}."))
    exhibits.append(Exhibit(None, "Ranges", "All ranges that the study found.", [_ranges(study)]))
    made.add(
        "localization",
        "Which layers refuse",
        f"Scaling a block by α and counting refusals of {len(located(study).baseline.refused)} prompts that only sound "
        "dangerous: the upper bound moves first, then the lower. Decision layers are found another way, by patching "
        "residual streams between harmful and harmless prompts layer by layer.",
        exhibits,
    )


def _ranges(study: SafetyLayers) -> Table:
    onset, decision = study[GAPS].onsets[study.name], study[DECISION]
    found: list[tuple[str, LayerRange | None, str]] = [
        ("onset of the gap", onset.layers if onset else None, "the paper’s first guess, by a written rule")
    ]
    found += [(f"scaling: {name}", sweep.layers, _alpha(sweep)) for name, sweep in study[SEARCHES].items()]
    sure = decision.resampled
    often = "within noise" if sure is None else sure.words(decision.layers)
    found.append(("decision layers", decision.layers, f"by activation patching; {often}"))
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


def claims(study: SafetyLayers) -> Iterator[Conclusion]:
    """Whether scaling finds a block, the same block in every way, and the planted one."""
    found = located(study)
    block, best = found.layers, found.lower.best
    shows = "no" if not found.located else "unclear" if found.within_noise else "yes"
    text = f"{found.verdict}."
    if best.count == found.baseline.count == len(best.refused):
        shows, text = "inconclusive", f"All over-rejection prompts are refused as it is, and none can be added. {text}"
    effect = "Scaling finds a block whose over-rejections exceed those of every neighbouring block"
    yield effect, f"{PAPER} §3.4", shows, text
    ranges = {name: search.layers for name, search in study[SEARCHES].items()}
    overlaps = [block.overlap(other) for name, other in ranges.items() if other != block] or [1.0]
    listed = "; ".join(f"{name}: {other}" for name, other in ranges.items())
    shows = "yes" if min(overlaps) == 1 else "no" if min(overlaps) < 0.5 else "unclear"
    text = f"{listed}."
    lost = [name for name, search in study[SEARCHES].items() if not search.located]
    if lost:
        shows = "inconclusive"
        text = f"Nothing was located, beyond the noise of not scaling, by {join(lost)}. The searches ended at {text}"
    yield "The block is the same whichever matrices are scaled, and in which direction", "control", shows, text
    if study.planted is not None:
        overlap = block.overlap(study.planted)
        shows = "yes" if overlap == 1 else "unclear" if overlap >= 0.5 else "no"
        text = f"Planted {study.planted}; located {block}, overlap {overlap:.2f}."
        if not found.located:
            # Where the search had to end may be the planted block, and is no finding then either.
            shows, text = "no", f"Nothing was located: {found.verdict}. Planted {study.planted}."
        if decided := study[DECISION].layers:
            text += f" Decision layers {decided}, overlap {decided.overlap(study.planted):.2f}."
        yield "The procedure finds the block in which refusal was planted", "ground truth", shows, text


SEARCHES: Parts[SafetyLayers, str, Localization] = Parts(
    lambda _: {name: f"localization_{number}" for number, name in enumerate(WAYS)},
    Localization,
    _search,
    says="scaling sweeps: {0}",
    then=_tell,
    tables=lambda study: with_categories({f"sweeps_{i}": found for i, found in enumerate(study[SEARCHES].values())}),
)
DECISION: Part[SafetyLayers, DecisionLayers] = Part(
    "decision", DecisionLayers, _decide, says="decision layers", section=_section, claims=claims
)
