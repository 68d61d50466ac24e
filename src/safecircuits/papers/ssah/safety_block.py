"""Where the two papers meet: the safety layers, and how many safety-critical units lie in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from safecircuits.base.progress import say
from safecircuits.base.text import plain
from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.comparison import compare_gaps
from safecircuits.layers.decision import decision_layers
from safecircuits.layers.localization import localize
from safecircuits.layers.onset import search_start
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Maybe, Parts
from safecircuits.papers.ssah.groups import UNITS
from safecircuits.papers.ssah.settings import Ssah
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.results.result import Result
from safecircuits.units.overlap import Enrichment, MaskOverlap, enrichment, mask_overlap

NOT_LOCATED = "which ended within noise of not scaling at all"
"""Said of a block at which a search ended that located nothing."""


@dataclass(frozen=True)
class SafetyBlock(Result):
    """The safety layers that the units are held against, and where they come from."""

    layers: LayerRange
    found_by: str


def safety_block(study: Ssah) -> SafetyBlock | None:
    """The safety layers; None where there are none, or they are the whole model, in which nothing is concentrated."""
    block = study[BLOCK]
    return None if block is None or len(block.layers) == study.shape.n_layers else block


def known_block(study: Ssah) -> LayerRange:
    """The layers of a study that has them."""
    block = safety_block(study)
    assert block is not None
    return block.layers


def _block(study: Ssah) -> SafetyBlock:
    """As given, or by scaling, as *Safety Layers* does; where that finds nothing or everything, by patching."""
    p, s = study.asked, study.settings
    if s.layers is not None:
        return SafetyBlock(s.layers, "given")
    say("safety layers")
    assert p.normal is not None
    assert p.over_rejection is not None
    gaps = compare_gaps({study.name: study.model}, p.normal, p.malicious, template=s.template, seed=s.seeds[0])
    start = search_start(gaps.onsets[study.name], study.shape.n_layers)
    found = localize(study.model, p.over_rejection, start, alpha="search", resume=study.work("sweep.jsonl"), **s.asking)
    whole = len(found.layers) == study.shape.n_layers
    if found.located and not whole:
        return SafetyBlock(found.layers, f"scaling, α = {found.alpha:g}")
    decided = decision_layers(study.model, p.normal, p.malicious, **s.asking).layers
    if decided is None:
        return SafetyBlock(found.layers, f"scaling, α = {found.alpha:g}" + f", {NOT_LOCATED}" * (not found.located))
    why = "ended at the whole model" if found.located else "located nothing"
    return SafetyBlock(decided, f"activation patching, since scaling {why}")


def _concentrated(study: Ssah, name: str) -> Enrichment:
    groups = study[UNITS][name]
    return enrichment(groups["SCU"], known_block(study), sites=groups.sites, seed=study.settings.seeds[0])


def _shared(study: Ssah, name: str) -> MaskOverlap:
    return mask_overlap(study[UNITS][name]["SCU"], FreezeMask.layers(known_block(study), study.shape))


def _section(study: Ssah, made: StudyPage) -> None:
    block = safety_block(study)
    if block is None:
        return
    exhibits = []
    for number, (name, found) in enumerate(study[ENRICHMENTS].items()):
        found.plot(made.axes(f"enrichment_{number}", 3.0))
        overlap = study[OVERLAPS][name]
        caption = f"By {name}, {str(found).splitlines()[-1]}. Masks: {overlap}."
        rows = [
            [
                plain(row["layer"]),
                plain(row["units"]),
                f"{row['expected']:.1f}",
                f"{row['chance_low']:g} to {row['chance_high']:g}",
                f"{row['p']:.2g}",
                f"{row['q']:.2g}",
            ]
            for row in found.to_frame().to_dict("records")
        ]
        columns = ["layer", "SCU", "by chance", "95 % of permutations", "p", "q"]
        table = Table(f"SCU by {name}, by layer", columns, rows)
        exhibits.append(Exhibit(f"enrichment_{number}", f"SCU by {name} by layer", caption, [table]))
    made.add(
        "enrichment",
        "Where the two papers meet: do the units lie in the safety layers?",
        f"Safety layers {block.layers} ({block.found_by}). If the SCU were spread over the layers at "
        "random, a layer would hold a hypergeometric number of them.",
        exhibits,
    )


def _claims(study: Ssah) -> Iterator[Conclusion]:
    for name, found in study[ENRICHMENTS].items():
        block = found.block
        assert block is not None
        shows = (
            "yes" if block.count > block.high and block.p < 0.05 else "no" if block.count <= block.high else "unclear"
        )
        effect = f"The SCU by {name} are concentrated in the safety layers {block.layers}"
        text = f"{str(block)[0].upper()}{str(block)[1:]}."
        layers = safety_block(study)
        if layers is not None and NOT_LOCATED in layers.found_by:
            shows, text = "inconclusive", f"There are no safety layers: {layers.found_by}. {text}"
        yield effect, "where the papers meet", shows, text


BLOCK: Maybe[Ssah, SafetyBlock] = Maybe(
    "block",
    SafetyBlock,
    _block,
    when=lambda study: study.settings.layers or (study.asked.normal and study.asked.over_rejection),
)
ENRICHMENTS: Parts[Ssah, str, Enrichment] = Parts(
    lambda study: study.by_cut("enrichment"),
    Enrichment,
    _concentrated,
    when=safety_block,
    section=_section,
    claims=_claims,
)
OVERLAPS: Parts[Ssah, str, MaskOverlap] = Parts(
    lambda study: study.by_cut("overlap"), MaskOverlap, _shared, when=safety_block
)
