"""The whole of *SSAH* (ICLR 2026) on one model: each of its experiments, with the controls that it lacks.

Every part is kept in the run directory as soon as it is there, so that an interrupted study goes on with the rest.
``ssah_page`` makes the report of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from safecircuits.base.progress import say, without_bars
from safecircuits.base.vocabulary import LayerRange
from safecircuits.baselines.lora import LoraSettings
from safecircuits.behavior.evaluate import Behavior, EvaluationOptions, evaluate
from safecircuits.behavior.stakes import tell_if_nothing_to_lose
from safecircuits.direction.compare import DirectionComparison, compare_directions
from safecircuits.model.each_model import release
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.papers.ssah.groups import Classifier, cut_groups, stability, transfers
from safecircuits.papers.ssah.layers import layers_of_units
from safecircuits.papers.ssah.parts import SsahPrompts, SsahSettings, SsahStudy, SsahSubject
from safecircuits.papers.ssah.removal import curves, pressures, removals
from safecircuits.papers.ssah.training import equal_budgets, freezing, redundant_budget
from safecircuits.results.run import RunDirectory
from safecircuits.studies.subject import plain_name
from safecircuits.units.scores import ATTRIBUTION_METHODS


def ssah_study(
    source: str,
    prompts: SsahPrompts,
    run: RunDirectory,
    *,
    settings: SsahSettings | None = None,
    base: str | None = None,
    unaligned: str | None = None,
    lora: LoraSettings | None = None,
) -> SsahStudy:
    """Run every part on the model that ``source`` names, keeping results in ``run``.

    Args:
        source: a hub id, a folder or an embedded stage.
        base: the pretrained model, for the probe, for what alignment did to its units, and for the alignment budget.
        unaligned: a sibling that follows instructions and was never taught to refuse; for the probe and the transfer.
        lora: settings of the LoRA arm; its defaults unless given.

    Raises:
        ValueError: for a cut that needs normal prompts where there are none, and as the parts do.
    """
    s = settings or SsahSettings()
    check_inputs(prompts, s)
    others = {name: other for name, other in (("unaligned", unaligned), ("base", base)) if other is not None}
    model = s.load(source)
    study = SsahStudy(source, plain_name(source, others), ModelShape.of(model), s, others, prompts=prompts)
    for given in (s.layers, s.freeze_layers):
        if given is not None:
            LayerRange.of(given, study.shape.n_layers)  # refuses layers that the model does not have
    classify = Classifier.of(study, model)
    run.kept("subject", SsahSubject, lambda: study.subject)
    _behavior(study, run, model)
    tell_if_nothing_to_lose(study.behavior[study.name].rates, "the study")
    _direction(study, run)
    curves(study, run, model)
    cut_groups(study, run, model, classify)
    removals(study, run, model)
    pressures(study, run, model)
    stability(study, run, model, classify)
    layers_of_units(study, run, model)
    del model
    release()
    if s.scenarios:
        say("fine-tuning with frozen units")
        freezing(study, run, lora)
    transfers(study, run, classify)
    if base is not None:
        say("redundant units as alignment budget")
        redundant_budget(study, run, base)
    if s.scenarios and study.block is not None:
        say("units and layers, frozen at equal budgets")
        equal_budgets(study, run)
    return study


def check_inputs(prompts: SsahPrompts, settings: SsahSettings) -> None:
    """A ValueError for what would fail an hour into the study: prompts, shares and scores that do not go together."""
    for data in (prompts.safety, prompts.utility, prompts.known, prompts.answered, prompts.answered_held_out):
        if data is not None:
            data.require_responses()
    for name, share in settings.shares.items() | {("budget_share", settings.budget_share)}:
        if not 0 < share < 1:
            raise ValueError(f"{name} is a share of all units between 0 and 1, not {share}")
    if sum(settings.shares.values()) > 1:
        raise ValueError(
            f"the shares of SCU, UCU and RU add up to {sum(settings.shares.values()):g}, more than all units"
        )
    for name, cut in settings.cuts.items():
        if cut.safest.method in ATTRIBUTION_METHODS and prompts.normal is None:
            raise ValueError(f"score {name!r} compares with normal prompts: give them, or leave this score out")


def _behavior(study: SsahStudy, run: RunDirectory, model: HookedModel) -> None:
    say("behaviour")
    p, s = study.prompts, study.settings
    sets: EvaluationOptions = {
        "malicious": p.malicious,
        "over_rejection": p.over_rejection,
        "utility": p.measured_utility,
        **s.judging,
    }
    study.behavior[study.name] = run.kept("behavior", Behavior, lambda: evaluate(model, **sets))
    for name, other in study.others.items():
        measure = partial(s.on, other, lambda its: evaluate(its, **sets))
        study.behavior[name] = run.kept(f"behavior_{name}", Behavior, measure)


def _direction(study: SsahStudy, run: RunDirectory) -> None:
    s = study.settings
    asked = study.prompts.malicious.at_most(s.probe_prompts)
    sources = {study.name: study.source, **study.others}
    for number, (name, reading) in enumerate(s.readings.items()):
        say(f"reasoning direction: {name}")

        def probe(reading: Mapping[str, Any] = reading) -> DirectionComparison:
            with without_bars():
                return compare_directions(sources, asked, suffixes=s.suffixes, **s.asking, **s.placing, **reading)

        study.probes[name] = run.kept(f"probe_{number}", DirectionComparison, probe)
