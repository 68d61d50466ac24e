"""Where harmful and harmless prompts part (§3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from safecircuits.base.progress import without_bars
from safecircuits.layers.comparison import GapComparison, compare_gaps
from safecircuits.layers.harmless_pairs import LEAST, benign_controls
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Part
from safecircuits.papers.safety_layers.settings import PAPER, SafetyLayers
from safecircuits.plots.pairs import comparison_figure, pair_panels
from safecircuits.report import tables
from safecircuits.report.sections import Exhibit
from safecircuits.results.by_category import with_categories


def _compare(study: SafetyLayers) -> GapComparison:
    p, s = study.asked, study.settings
    sources = {study.name: study.source, **study.others}
    options: dict[str, Any] = {"template": s.template, "seed": s.seeds[0], **s.placing}
    if study.others and len(p.normal) >= LEAST:
        options["controls"] = benign_controls(p.normal, p.over_rejection if len(p.over_rejection) > 1 else None)
    with without_bars():
        return compare_gaps(sources, p.normal, p.malicious, **options)


def _section(study: SafetyLayers, made: StudyPage) -> None:
    found = study[GAPS]
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
        f"bootstrap intervals.{_controlled(found)}",
        [
            Exhibit("gaps", "Similarity and angle gap", found.verdict.replace("\n", ". ") + ".", [tables.gaps(stages)]),
            Exhibit("pairs", "N–N, M–M and N–M similarity", f"{study.name}: mean and standard deviation over pairs."),
        ],
    )


def _controlled(found: GapComparison) -> str:
    """What a gap has to beat to be one of harm."""
    if not found.controls:
        return ""
    return (
        f" The same was measured between harmless sets ({', '.join(found.controls)}): a gap of harm that alignment "
        "opens has to grow more than theirs."
    )


def _claims(study: SafetyLayers) -> Iterator[Conclusion]:
    found = study[GAPS]
    onset, lines = found.onsets[study.name], found.verdict.splitlines()
    opens = "A gap between harmful and harmless prompts opens in some layers and not before"
    gap = found.gaps[study.name]
    shows = "yes" if onset and onset.layers.first > 0 and not gap.within_noise else "no"
    yield opens, f"{PAPER} §3.3", shows, f"{lines[0]}."
    if "base" in found.differences:
        opened = found.opened("base")  # more than gaps between harmless sets, where these were measured
        shows = "yes" if opened and found.onsets["base"] is None else "no" if not opened else "unclear"
        text = f"{lines[1]}."
        if onset is None or gap.within_noise:
            shows, text = "inconclusive", f"{study.name} has no gap that alignment could have made. {text}"
        yield "Alignment makes the gap: the base model has none", f"{PAPER} §3.3", shows, text


GAPS: Part[SafetyLayers, GapComparison] = Part(
    "gaps",
    GapComparison,
    _compare,
    says="angle gaps",
    section=_section,
    claims=_claims,
    tables=lambda study: with_categories({"gaps": study[GAPS]}),
)
