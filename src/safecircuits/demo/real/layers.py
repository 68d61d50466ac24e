"""Which layers: where the prompts part, and which layers decide, beside the planted ones."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from safecircuits.base.vocabulary import LayerRange
from safecircuits.demo.gap_controls import gap_controls, grown
from safecircuits.demo.real.settings import BASE, RealDemo
from safecircuits.layers.comparison import GapComparison, compare_gaps
from safecircuits.layers.decision import DecisionLayers, decision_layers
from safecircuits.layers.harmless_pairs import benign_controls
from safecircuits.layers.onset import OnsetRule
from safecircuits.layers.similarity import LayerGap, layer_gap
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Part, Parts
from safecircuits.plots.decision import plot_decision
from safecircuits.plots.layers import plot_gap
from safecircuits.report import tables
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table

PAPER, KNOWN = "Safety Layers", "ground truth"


def planted_range(study: RealDemo) -> LayerRange | None:
    """The planted layers as a range; None where nothing is known."""
    layers = study.planted_layers
    return LayerRange(min(layers), max(layers)) if layers else None


def _gap(study: RealDemo, name: str) -> LayerGap:
    normal, malicious = (study.prompts(kind, study.settings.pairs) for kind in ("normal", "malicious"))
    return layer_gap(study.model_named(name), normal, malicious, template=study.settings.template)


def _opened(study: RealDemo) -> GapComparison:
    """The gap of the member and of its base beside those between harmless sets, which a gap of harm has to beat."""
    n = study.settings.pairs
    normal, malicious, borderline = (study.prompts(kind, n) for kind in ("normal", "malicious", "over_rejection"))
    models = {name: study.model_named(name) for name in (study.name, BASE)}
    controls = benign_controls(normal, borderline)
    return compare_gaps(models, normal, malicious, controls=controls, template=study.settings.template)


def _decide(study: RealDemo) -> DecisionLayers:
    normal, malicious = (study.prompts(kind, study.settings.pairs) for kind in ("normal", "malicious"))
    return decision_layers(study.model, normal, malicious, **study.settings.asking)


def found_block(study: RealDemo) -> LayerRange:
    """The layers that decide; where none do, the onset of the gap, or the middle third."""
    decided, onset = study[DECISION].layers, study[GAPS][study.name].onset()
    third = study.shape.n_layers // 3
    return decided or (onset.layers if onset else LayerRange(third, 2 * third - 1))


def _section(study: RealDemo, made: StudyPage) -> None:
    gaps, decision, known = study[GAPS], study[DECISION], planted_range(study)
    plot_gap(gaps, planted=known, ax=made.axes("gap"))
    plot_decision(decision, planted=known, ax=made.axes("decision"))
    records = {name: gap.record() for name, gap in gaps.items()}
    said = " ".join(f"{name}: {gap.verdict}." for name, gap in gaps.items())
    made.add(
        "layers",
        "Which layers refuse, beside the planted ones",
        "The angle gap looks at the residual stream at a prompt’s last token: how much wider the angle between a "
        "normal and a malicious request is than that between two normal ones. Patching looks at what decides: a "
        "malicious request’s residual stream is put into a harmless one’s run after one layer at a time, and the "
        "other way round. Layers are counted from 0, and a range includes both ends.",
        [
            Exhibit("gap", "Angle gap by layer", f"{said} Onset: {OnsetRule()}.", [tables.gaps(records)]),
            Exhibit("decision", "Decision carried by patching after each layer", f"Decision {decision.verdict}."),
            Exhibit(None, "Ranges", "What each method names, and the known answer.", [_ranges(study)]),
        ],
    )


def _ranges(study: RealDemo) -> Table:
    known = planted_range(study)
    rows = [
        [name, "none" if block is None else str(block), _overlap(block, known)] for name, block in _found(study).items()
    ]
    return Table("Ranges", ["method", "layers", "overlap with the planted"], [["planted", study.place, "1"], *rows])


def _found(study: RealDemo) -> dict[str, LayerRange | None]:
    onset = study[GAPS][study.name].onset()
    return {"onset of the gap": onset.layers if onset else None, "decision layers": study[DECISION].layers}


def _overlap(block: LayerRange | None, known: LayerRange | None) -> str:
    if known is None:
        return "not known"
    return f"{block.overlap(known):.2f}" if block else "0.00"


def _claims(study: RealDemo) -> Iterator[Conclusion]:
    known = planted_range(study)
    most = {name: float(gap.gap_deg.max()) for name, gap in study[GAPS].items()}
    text = f"The N-M angle exceeds the N-N angle by up to {most[study.name]:.1f}° in {study.name} and "
    text += f"{most[BASE]:.1f}° in its base."
    gap = study[GAPS][study.name]
    opened = study[OPENED].opened(BASE)
    shows = "yes" if most[study.name] >= 2 * most[BASE] and not gap.within_noise and opened else "no"
    text += f" {grown(study[OPENED], BASE)}"
    yield "Planting refusal opens a gap between harmful and harmless requests", PAPER, shows, text
    if known is None:
        return
    for name, block in _found(study).items():
        overlap = block.overlap(known) if block else 0.0
        shows = "yes" if overlap == 1 else "unclear" if overlap >= 0.5 else "no"
        text = f"Refusal was trained into {study.place}. Found: {block or 'none'}, overlap {overlap:.2f} (1 is exact)."
        if name == "decision layers" and (sure := study[DECISION].resampled) is not None and block is not None:
            text += f" The same layers {sure.words(block)}."
        what = "The gap’s onset is" if name.startswith("onset") else "The decision layers are"
        yield f"{what} the planted block", KNOWN, shows, text


OPENED = gap_controls(_opened)
GAPS: Parts[RealDemo, str, LayerGap] = Parts(
    lambda study: {name: f"gap_{name}" for name in (*study.others, study.name)},
    LayerGap,
    _gap,
    says="angle gap of {0}",
    then=RealDemo.let_go_of_base,
    tables=lambda study: {"gaps": pd.concat([gap.to_frame().assign(model=name) for name, gap in study[GAPS].items()])},
)
DECISION: Part[RealDemo, DecisionLayers] = Part(
    "decision",
    DecisionLayers,
    _decide,
    says="decision layers by patching",
    section=_section,
    claims=_claims,
    tables=lambda study: {"decision": study[DECISION].to_frame()},
)
