"""The whole of *Safety Layers* (ICLR 2025) on one model: each of its experiments, with the statistics it never had.

Every part is kept in the run directory as soon as it is there, so that an interrupted study goes on with the rest.
``safety_layers_page`` makes the report of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from safecircuits.base.notices import notify
from safecircuits.base.progress import say, without_bars
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.agreement_table import AgreementTable, agreement
from safecircuits.behavior.evaluate import Behavior, EvaluationOptions, evaluate
from safecircuits.behavior.generate import generate
from safecircuits.behavior.stakes import tell_if_nothing_to_lose
from safecircuits.layers.attention import AttentionMap, attention_map
from safecircuits.layers.comparison import GapComparison, compare_gaps
from safecircuits.layers.decision import DecisionLayers, decision_layers
from safecircuits.layers.localization import Localization, localize
from safecircuits.layers.malicious_check import MaliciousCheck, answered_malicious
from safecircuits.layers.onset import search_start
from safecircuits.layers.transplanting import TransplantTable, transplant_study
from safecircuits.model.each_model import release
from safecircuits.model.load import load_checkpoint
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.papers.safety_layers.parts import SEARCHES, SafetyLayersStudy, StudyPrompts, StudySettings, Work
from safecircuits.papers.safety_layers.training import arms_of, tuned
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.results.run import RunDirectory
from safecircuits.studies.hyperparameters import hyperparameters
from safecircuits.studies.subject import plain_name


@dataclass(frozen=True)
class StudySubject(Result):
    """The model of a study."""

    source: str
    shape: ModelShape
    planted: LayerRange | None
    """The block in which refusal is known to be, for models that were made so."""

    def study(self, *, beside_base: bool) -> SafetyLayersStudy:
        """A study of it with no parts yet, alone or with a model that goes by ``base``."""
        name = plain_name(self.source, ("base",) if beside_base else ())
        return SafetyLayersStudy(self.source, name, self.shape, self.planted)


def safety_layers_study(
    source: str,
    prompts: StudyPrompts,
    run: RunDirectory,
    *,
    settings: StudySettings | None = None,
    base: str | None = None,
    planted: LayerRange | None = None,
) -> SafetyLayersStudy:
    """Run every part on the model that ``source`` names, keeping results in ``run``.

    Args:
        source: a hub id, a folder or an embedded stage.
        base: the model before alignment, if there is one: for the gap it should not have, and for the transplant.
        planted: where refusal is known to be.

    Raises:
        ValueError: for prompts without the responses that they need, an α that does not scale up, a planted block that
            the model does not have, a preset that does not have the model, and as the parts do.
    """
    s = settings or StudySettings()
    check_inputs(source, prompts, s)
    model = s.load(source)
    if planted is not None:
        LayerRange.of(planted, ModelShape.of(model).n_layers)  # refuses layers that the model does not have
    subject = run.kept("subject", StudySubject, lambda: StudySubject(source, ModelShape.of(model), planted))
    study = subject.study(beside_base=base is not None)
    work = Work(study, run, prompts, s)
    _behavior(work, model, base)
    tell_if_nothing_to_lose(study.behavior[study.name].rates, "the study")
    _existence(work, base)
    _localization(work, model)
    _checks(work, model)
    _attention(work, model)
    if base is not None:
        _transplant(work, base)
    if s.scenarios:
        arms = arms_of(work, model)
        del model
        release()
        study.finetuning = tuned(work, arms)
    return study


def check_inputs(source: str, prompts: StudyPrompts, settings: StudySettings) -> None:
    """A ValueError for what would fail, or be called by the wrong name, an hour into the study."""
    for data in (prompts.utility, prompts.refused):
        if data is not None:
            data.require_responses()
    for scenario in settings.scenarios:
        hyperparameters(settings.training, source, scenario)  # refuses a preset that does not have this model
    alpha = settings.alpha
    if alpha != "search" and (isinstance(alpha, str) or not 1 < alpha < float("inf")):
        raise ValueError(
            f"alpha is 'search' or a number above 1 (the search downwards takes its inverse), not {alpha!r}"
        )


def _behavior(work: Work, model: HookedModel, base: str | None) -> None:
    say("behaviour and what the detectors make of it")
    study, run, p, s = work.study, work.run, work.prompts, work.settings
    sets: EvaluationOptions = {
        "malicious": p.measured,
        "over_rejection": p.over_rejection,
        "utility": p.utility,
        **s.judging,
    }
    study.behavior[study.name] = run.kept("behavior", Behavior, lambda: evaluate(model, **sets))
    if base is not None:
        measure = partial(s.on, base, lambda its: evaluate(its, **sets))
        study.behavior["base"] = run.kept("behavior_base", Behavior, measure)

    def judged() -> AgreementTable:
        # Some detectors look for phrases anywhere: they get a whole sentence to look at.
        answers = generate(model, p.over_rejection, max_new_tokens=2 * s.max_new_tokens, template=s.template)
        return agreement(answers)

    study.detectors = run.kept("detectors", AgreementTable, judged)


def _existence(work: Work, base: str | None) -> None:
    say("angle gaps")
    study, run, p, s = work.study, work.run, work.prompts, work.settings
    sources = {study.name: study.source} | ({} if base is None else {"base": base})

    def compare() -> GapComparison:
        with without_bars():
            return compare_gaps(sources, p.normal, p.malicious, template=s.template, seed=s.seeds[0], **s.placing)

    study.gaps = run.kept("gaps", GapComparison, compare)


def _localization(work: Work, model: HookedModel) -> None:
    study, run, p, s = work.study, work.run, work.prompts, work.settings
    assert study.gaps is not None
    start = search_start(study.gaps.onsets[study.name], study.shape.n_layers)
    for number, (name, (components, direction)) in enumerate(SEARCHES.items()):
        say(f"scaling sweeps: {name}")

        def search(number: int = number, components: Any = components, direction: Any = direction) -> Localization:
            alpha: Any = s.alpha
            if isinstance(alpha, int | float) and direction == "down":
                alpha = 1 / alpha
            return localize(
                model,
                p.over_rejection,
                start,
                alpha=alpha,
                direction=direction if alpha == "search" else None,
                reach=s.reach,
                components=components,
                **s.asking,
                resume=run.work(f"sweep_{number}.jsonl"),
                progress=True,
            )

        study.searches[name] = run.kept(f"localization_{number}", Localization, search)
    if not study.located.located:
        notify(
            f"scaling located nothing ({study.located.verdict}); what follows scales, moves and freezes the block "
            "at which the search ended, and what it says of it is inconclusive"
        )
    say("decision layers")
    study.decision = run.kept(
        "decision",
        DecisionLayers,
        lambda: decision_layers(model, p.normal, p.malicious, **s.asking),
    )


def _checks(work: Work, model: HookedModel) -> None:
    say("malicious queries answered, and a block scaled too far")
    study, run, p, s = work.study, work.run, work.prompts, work.settings
    located = study.located

    def check(prompts: PromptSet, alpha: float) -> MaliciousCheck:
        return answered_malicious(model, prompts, located.layers, alpha, **s.asking)

    study.check = run.kept("malicious_check", MaliciousCheck, lambda: check(p.measured, located.alpha))
    study.too_far = run.kept("too_far", MaliciousCheck, lambda: check(p.over_rejection, s.too_far))


def _attention(work: Work, model: HookedModel) -> None:
    template = work.settings.attention_template
    for number, question in enumerate(work.prompts.questions):
        say(f"attention: {question!r}")

        def ask(question: str = question) -> AttentionMap:
            return attention_map(model, question, template=template)

        work.study.attention.append(work.run.kept(f"attention_{number}", AttentionMap, ask))


def _transplant(work: Work, base: str) -> None:
    say("transplants into the base model")
    study, run, p, s = work.study, work.run, work.prompts, work.settings
    half = study.shape.n_layers // 2
    blocks = {"located block": study.block}
    if study.decision is not None and study.decision.layers is not None:
        blocks["decision layers"] = study.decision.layers
    if study.planted is not None:
        blocks["planted block"] = study.planted
    blocks |= {"first half": LayerRange(0, half - 1), "second half": LayerRange(half, study.shape.n_layers - 1)}

    sets: EvaluationOptions = {"malicious": p.measured, "utility": p.utility, **s.judging}

    def measure() -> TransplantTable:
        with without_bars():
            donor, donor_tokenizer = load_checkpoint(study.source, s.dtype, s.device, None)
            target, tokenizer = load_checkpoint(base, s.dtype, s.device, None)
        return transplant_study(
            donor,
            target,
            blocks,
            tokenizer=tokenizer or donor_tokenizer,
            backend=s.backend,
            **sets,
        )

    study.transplant = run.kept("transplant", TransplantTable, measure)
    release()
