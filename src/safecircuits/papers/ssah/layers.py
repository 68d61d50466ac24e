"""Where the two papers meet in the SSAH study: the safety layers, and how many safety-critical units lie in them."""

from __future__ import annotations

from safecircuits.base.progress import say
from safecircuits.layers.comparison import compare_gaps
from safecircuits.layers.decision import decision_layers
from safecircuits.layers.localization import localize
from safecircuits.layers.onset import search_start
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import HookedModel
from safecircuits.papers.ssah.parts import NOT_LOCATED, SafetyBlock, SsahStudy
from safecircuits.results.run import RunDirectory
from safecircuits.units.groups import UnitGroups
from safecircuits.units.overlap import Enrichment, MaskOverlap, enrichment, mask_overlap


def layers_of_units(study: SsahStudy, run: RunDirectory, model: HookedModel) -> None:
    """The safety layers as given or located, and how many units of each cut's SCU lie in them."""
    p, s = study.prompts, study.settings
    if s.layers is not None:
        given = SafetyBlock(s.layers, "given")
        study.block = run.kept("block", SafetyBlock, lambda: given)
    elif p.normal is not None and p.over_rejection is not None:
        say("safety layers")
        study.block = run.kept("block", SafetyBlock, lambda: _located(study, run, model))
    if study.block is None or len(study.block.layers) == study.shape.n_layers:
        study.block = None  # units are not concentrated in a whole model
        return
    block = study.block.layers
    for number, (name, groups) in enumerate(study.groups.items()):

        def concentrated(groups: UnitGroups = groups) -> Enrichment:
            return enrichment(groups, block, seed=s.seeds[0])

        def shared(groups: UnitGroups = groups) -> MaskOverlap:
            return mask_overlap(FreezeMask.units(groups, "SCU"), FreezeMask.layers(block, study.shape))

        study.enrichments[name] = run.kept(f"enrichment_{number}", Enrichment, concentrated)
        study.overlaps[name] = run.kept(f"overlap_{number}", MaskOverlap, shared)


def _located(study: SsahStudy, run: RunDirectory, model: HookedModel) -> SafetyBlock:
    """By scaling, as *Safety Layers* does; where that finds nothing or everything, by activation patching."""
    p, s = study.prompts, study.settings
    assert p.normal is not None
    assert p.over_rejection is not None
    gaps = compare_gaps({study.name: model}, p.normal, p.malicious, template=s.template, seed=s.seeds[0])
    start = search_start(gaps.onsets[study.name], study.shape.n_layers)
    found = localize(model, p.over_rejection, start, alpha="search", resume=run.work("sweep.jsonl"), **s.asking)
    whole = len(found.layers) == study.shape.n_layers
    if found.located and not whole:
        return SafetyBlock(found.layers, f"scaling, α = {found.alpha:g}")
    decided = decision_layers(model, p.normal, p.malicious, **s.asking).layers
    if decided is None:
        return SafetyBlock(found.layers, f"scaling, α = {found.alpha:g}" + f", {NOT_LOCATED}" * (not found.located))
    why = "ended at the whole model" if found.located else "located nothing"
    return SafetyBlock(decided, f"activation patching, since scaling {why}")
