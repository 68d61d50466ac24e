"""The whole of *SSAH* (ICLR 2026) on one model: each of its experiments, with the controls that it lacks.

Every part is kept in the run directory as soon as it is there, so that an interrupted study goes on with the rest.
``ssah_page`` makes the report of it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from safecircuits.behavior.evaluate import Behavior, EvaluationOptions, evaluate
from safecircuits.behavior.pressure import Pressure, pressure
from safecircuits.direction.compare import DirectionComparison, compare_directions
from safecircuits.hooks.ablate import ablated
from safecircuits.layers.comparison import compare_gaps
from safecircuits.layers.decision import decision_layers
from safecircuits.layers.localization import localize
from safecircuits.layers.onset import search_start
from safecircuits.masks import FreezeMask
from safecircuits.models import load_model
from safecircuits.progress import say, without_bars
from safecircuits.prompts import PromptSet
from safecircuits.rundir import RunDirectory
from safecircuits.sites import SITES, HookedModel, LayerRange, ModelShape
from safecircuits.studies.ssah_parts import (
    REMOVED,
    TUNED,
    Cut,
    PrunedGroup,
    SafetyBlock,
    SsahPrompts,
    SsahSettings,
    SsahStudy,
    SsahSubject,
)
from safecircuits.studies.ssah_training import equal_budgets, freezing, redundant_budget, tuned_model
from safecircuits.studies.subject import plain_name
from safecircuits.training.lora import LoraSettings
from safecircuits.units.ablation import AblationTable, ablate_groups
from safecircuits.units.answer_tokens import AnswerTokens, find_answer_tokens
from safecircuits.units.comparison import COUNTS, Candidate, ScoreComparison, score_comparison
from safecircuits.units.enrichment import Enrichment, MaskOverlap, enrichment, mask_overlap
from safecircuits.units.groups import GROUPS, UnitGroups, classify_units
from safecircuits.units.importance import score_units
from safecircuits.units.prune import prune_units
from safecircuits.units.scores import ATTRIBUTION_METHODS, UnitScores
from safecircuits.units.selection import count_units, random_units
from safecircuits.units.stability import Stability, calibration_subsets, compare_groups
from safecircuits.units.transfer import AttributeTransfer, transfer_of

Load = Callable[[str], HookedModel]


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

    def load(which: str) -> HookedModel:
        with without_bars():
            return load_model(which, backend=s.backend, device=s.device, dtype=s.dtype)

    others = {name: other for name, other in (("unaligned", unaligned), ("base", base)) if other is not None}
    model = load(source)
    study = SsahStudy(source, plain_name(source), ModelShape.of(model), s, others, prompts=prompts)
    for given in (s.layers, s.freeze_layers):
        if given is not None:
            LayerRange.of(given, study.shape.n_layers)  # refuses layers that the model does not have
    classify = _Classifier(study, _answers(study, model))
    run.kept("subject", SsahSubject, lambda: study.subject)
    _behavior(study, run, model, load)
    _direction(study, run, load)
    _scores(study, run, model)
    _groups(study, run, model, classify)
    _removals(study, run, model)
    _stability(study, run, model, classify)
    _layers(study, run, model)
    del model
    gc.collect()
    if s.scenarios:
        say("fine-tuning with frozen units")
        freezing(study, run, lora)
    _transfers(study, run, load, classify)
    if base is not None:
        say("redundant units as alignment budget")
        redundant_budget(study, run, base)
    if s.scenarios and study.block is not None:
        say("units and layers, frozen at equal budgets")
        equal_budgets(study, run)
    return study


def check_inputs(prompts: SsahPrompts, settings: SsahSettings) -> None:
    """A ValueError for what would fail an hour into the study: prompts, shares and scores that do not go together."""
    for data in (prompts.safety, prompts.utility, prompts.measured_utility):
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


def _answers(study: SsahStudy, model: HookedModel) -> AnswerTokens | None:
    """What refuses and what answers, read off the studied model for all models; None where no cut asks."""
    p, s = study.prompts, study.settings
    if p.normal is None or not any(cut.safest.method in ATTRIBUTION_METHODS for cut in s.cuts.values()):
        return None
    return find_answer_tokens(model, p.safety, p.normal, detector=s.detector, template=s.template)


@dataclass(frozen=True)
class _Classifier:
    """Cuts the units of any model into groups, on the study's prompts or on some of them."""

    study: SsahStudy
    answers: AnswerTokens | None

    def __call__(
        self,
        model: HookedModel,
        cut: Cut,
        sets: tuple[PromptSet, PromptSet] | None = None,
        *,
        knows_safety: bool = True,
    ) -> UnitGroups:
        p, s = self.study.prompts, self.study.settings
        sets = sets or (p.safety, p.utility)
        safety, utility = (self._scores(model, data, cut.score) for data in sets)
        if not knows_safety:
            return _without_safety(
                classify_units(safety, utility, scu=0.0, ucu=0.0, ru=s.ru, normalize=cut.score.normalize)
            )
        by = None if cut.scu_by is None else self._scores(model, sets[0], cut.scu_by)
        return classify_units(safety, utility, scu=s.scu, ucu=s.ucu, ru=s.ru, scu_by=by, normalize=cut.score.normalize)

    def _scores(self, model: HookedModel, data: PromptSet, by: Candidate) -> UnitScores:
        s = self.study.settings
        more: dict[str, Any] = {}
        if by.method in ATTRIBUTION_METHODS:
            more = {"reference": self.study.prompts.normal, "answers": self.answers}
        return score_units(model, data, method=by.method, tokens=by.tokens, template=s.template, **more)


def _behavior(study: SsahStudy, run: RunDirectory, model: HookedModel, load: Load) -> None:
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

        def measure(other: str = other) -> Behavior:
            return evaluate(load(other), **sets)

        study.behavior[name] = run.kept(f"behavior_{name}", Behavior, measure)


def _direction(study: SsahStudy, run: RunDirectory, load: Load) -> None:
    p, s = study.prompts, study.settings
    asked = p.malicious.at_most(s.probe_prompts)
    sources = {study.name: study.source} | dict(study.others)
    for number, (name, reading) in enumerate(s.readings.items()):
        say(f"reasoning direction: {name}")

        def probe(reading: Mapping[str, Any] = reading) -> DirectionComparison:
            models = {name: (lambda which=which: load(which)) for name, which in sources.items()}
            return compare_directions(
                models,
                asked,
                suffixes=s.suffixes,
                detector=s.detector,
                max_new_tokens=s.max_new_tokens,
                template=s.template,
                **reading,
            )

        study.probes[name] = run.kept(f"probe_{number}", DirectionComparison, probe)


def _scores(study: SsahStudy, run: RunDirectory, model: HookedModel) -> None:
    p, s = study.prompts, study.settings
    if p.normal is None or not study.behavior[study.name].rates["malicious_refused"]:
        return  # without refusals there is nothing to halve
    say("ablation curves of the scores")
    reference = p.normal
    sets: EvaluationOptions = {"malicious": p.malicious, "utility": p.measured_utility, **s.judging}
    study.scores = run.kept(
        "scores",
        ScoreComparison,
        lambda: score_comparison(
            model,
            p.safety,
            p.utility,
            reference,
            candidates=tuple(cut.safest for cut in s.cuts.values()),
            counts=_curve_counts(study),
            resume=run.work("curves.jsonl"),
            progress=True,
            **sets,
        ),
    )


def _curve_counts(study: SsahStudy) -> tuple[int, ...]:
    """How many units the curves remove; as many as are SCU among them, since the claim is about those."""
    s, shape = study.settings, study.shape
    n_units = sum(shape.n_layers * shape.n_units(site) for site in SITES)
    asked = s.counts or tuple(count for count in COUNTS if count <= n_units)
    return tuple(sorted({*asked, max(1, round(s.scu * n_units))}))


def _groups(study: SsahStudy, run: RunDirectory, model: HookedModel, classify: _Classifier) -> None:
    for number, (name, cut) in enumerate(study.settings.cuts.items()):
        say(f"groups by {name}")
        study.groups[name] = run.kept(f"groups_{number}", UnitGroups, partial(classify, model, cut))


def _removals(study: SsahStudy, run: RunDirectory, model: HookedModel) -> None:
    p, s = study.prompts, study.settings
    sets: EvaluationOptions = {"malicious": p.malicious, "utility": p.measured_utility, **s.judging}
    # What a unit does on average is a fact about the model, so it is counted over the prompts that are not harmful.
    means = run.kept(
        "means", UnitScores, lambda: score_units(model, p.utility, method="wifv", tokens="all", template=s.template)
    )
    study.unit_parameters = means.unit_parameters
    conditions: dict[str, dict[str, Any]] = {"zero": {**sets}, "mean": {**sets, "to": means.mean}}
    if s.system is not None:
        conditions["system"] = {**sets, "utility": None, "system": s.system}
    for number, (name, groups) in enumerate(study.groups.items()):
        study.removals[name] = {}
        for condition, options in conditions.items():
            say(f"groups by {name} removed: {condition}")

            def remove(
                number: int = number,
                groups: UnitGroups = groups,
                condition: str = condition,
                options: Mapping[str, Any] = options,
            ) -> AblationTable:
                return ablate_groups(
                    model,
                    groups,
                    names=REMOVED,
                    controls=s.controls if condition == "zero" else 0,
                    seed=s.seeds[0],
                    resume=run.work(f"removals_{number}_{condition}.jsonl"),
                    progress=True,
                    **options,
                )

            kept = run.kept(f"removals_{number}_{condition}", AblationTable, remove)
            study.removals[name][condition] = kept
        if s.prune:
            study.pruned[name] = _pruned(run, model, number, groups, sets)
    _pressures(study, run, model)


def _pruned(
    run: RunDirectory,
    model: HookedModel,
    number: int,
    groups: UnitGroups,
    sets: EvaluationOptions,
) -> dict[str, PrunedGroup]:
    found = {}
    for group in REMOVED:
        units = groups.members(group)
        if not count_units(units):
            continue
        say(f"{group} cut out of the weights")

        def cut(units: Any = units) -> PrunedGroup:
            smaller = prune_units(model, units)
            with without_bars():
                hooked = load_model(smaller.hf_model, tokenizer=smaller.tokenizer, backend="bridge")
            behavior = evaluate(hooked, **sets)
            return PrunedGroup(smaller.n_units, smaller.parameters_before, smaller.parameters_after, behavior)

        found[group] = run.kept(f"pruned_{number}_{group}", PrunedGroup, cut)
    return found


def _pressures(study: SsahStudy, run: RunDirectory, model: HookedModel) -> None:
    p, s = study.prompts, study.settings
    if s.system is None and s.prefill is None:
        return
    random = random_units(study.groups[study.best].members("SCU"), study.shape, s.seeds[0])
    removed: list[Any] = [{}, random, *(groups.members("SCU") for groups in study.groups.values())]
    for number, (name, units) in enumerate(zip(study.pressed, removed, strict=True)):
        say(f"under pressure, without {name}")

        def press(units: Any = units) -> Pressure:
            with ablated(model, units):
                return pressure(
                    model,
                    p.malicious,
                    system=s.system,
                    prefill=s.prefill,
                    prefill_tokens=s.prefill_tokens if s.prefill is not None else None,
                    detector=s.detector,
                    max_new_tokens=s.max_new_tokens,
                    template=s.template,
                )

        study.pressures[name] = run.kept(f"pressure_{number}", Pressure, press)


def _stability(study: SsahStudy, run: RunDirectory, model: HookedModel, classify: _Classifier) -> None:
    p, s = study.prompts, study.settings
    half = min(len(p.safety), len(p.utility)) // 2
    if half:
        subsets = calibration_subsets(p.safety, p.utility, n=half, draws=s.draws, seed=s.seeds[0])
        for number, (name, cut) in enumerate(s.cuts.items()):
            say(f"stability of the groups by {name}")

            def compare(cut: Cut = cut) -> Stability:
                return compare_groups({subset: classify(model, cut, sets) for subset, sets in subsets.items()})

            study.stability[name] = run.kept(f"stability_{number}", Stability, compare)
    if len(study.groups) > 1:
        study.agreement = run.kept("agreement", Stability, lambda: compare_groups(study.groups))


def _layers(study: SsahStudy, run: RunDirectory, model: HookedModel) -> None:
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
    """By scaling, as *Safety Layers* does; by swapping residual streams where scaling ends at the whole model."""
    p, s = study.prompts, study.settings
    assert p.normal is not None
    assert p.over_rejection is not None
    gaps = compare_gaps({study.name: model}, p.normal, p.malicious, template=s.template, seed=s.seeds[0])
    start = search_start(gaps.onsets[study.name], study.shape.n_layers)
    asking: dict[str, Any] = {"detector": s.detector, "max_new_tokens": s.max_new_tokens, "template": s.template}
    found = localize(model, p.over_rejection, start, alpha="search", resume=run.work("sweep.jsonl"), **asking)
    if len(found.layers) < study.shape.n_layers:
        return SafetyBlock(found.layers, f"scaling, α = {found.alpha:g}")
    decided = decision_layers(model, p.normal, p.malicious, **asking).layers
    if decided is None:
        return SafetyBlock(found.layers, f"scaling, α = {found.alpha:g}")
    return SafetyBlock(decided, "swapping residual streams, since scaling ended at the whole model")


def _transfers(study: SsahStudy, run: RunDirectory, load: Load, classify: _Classifier) -> None:
    """Figure 6 (alignment) and Figure 5 (fine-tuning), each by every cut."""
    s = study.settings
    made = {name: partial(load, other) for name, other in study.others.items()}
    if s.scenarios:
        made[TUNED] = partial(tuned_model, study, load)
    study.transfers = {name: {} for name in s.cuts}
    for kind, make in made.items():
        label = study.transfer_label(kind, s.scenarios[0].name if kind == TUNED else None)
        say(f"attribute transfer: {label}")
        other = _Once(make)
        for number, name in enumerate(s.cuts):
            cross = partial(_transfer, study, classify, other, kind, name)
            study.transfers[name][label] = run.kept(f"transfer_{number}_{kind}", AttributeTransfer, cross)


def _transfer(study: SsahStudy, classify: _Classifier, other: _Once, kind: str, name: str) -> AttributeTransfer:
    own, cut = study.groups[name], study.settings.cuts[name]
    theirs = classify(other(), cut, knows_safety=kind != "base")
    return transfer_of(own, theirs) if kind == TUNED else transfer_of(theirs, own)


class _Once:
    """A model that is made when it is first asked for."""

    def __init__(self, make: Callable[[], HookedModel]) -> None:
        self.make = make
        self.model: HookedModel | None = None

    def __call__(self) -> HookedModel:
        if self.model is None:
            self.model = self.make()
        return self.model


def _without_safety(groups: UnitGroups) -> UnitGroups:
    """A base model knows no safety: what is not redundant is utility-critical (Figure 6)."""
    rest, useful = GROUPS.index("CU"), GROUPS.index("UCU")
    labels = {site: torch.where(row == rest, useful, row).to(row.dtype) for site, row in groups.labels.items()}
    return replace(groups, labels=labels)
