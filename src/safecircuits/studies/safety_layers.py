"""The whole of *Safety Layers* (ICLR 2025) on one model: each of its experiments, with the statistics it never had.

Every part is kept in the run directory as soon as it is there, so that an interrupted study goes on with the rest.
``safety_layers_page`` makes the report of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safecircuits.behavior.agreement import AgreementTable, agreement
from safecircuits.behavior.evaluate import Behavior, EvaluationOptions, evaluate
from safecircuits.behavior.generate import generate
from safecircuits.behavior.refusal import RefusalDetector
from safecircuits.hooks.scale import ComponentSet
from safecircuits.layers.attention import AttentionMap, attention_map
from safecircuits.layers.comparison import GapComparison, compare_gaps
from safecircuits.layers.decision import DecisionLayers, decision_layers
from safecircuits.layers.localization import Direction, Localization, localize
from safecircuits.layers.malicious_check import MaliciousCheck, answered_malicious
from safecircuits.layers.onset import search_start
from safecircuits.layers.transplant import TransplantTable, transplant_study
from safecircuits.masks import FreezeMask
from safecircuits.models import Backend, load_checkpoint, load_model
from safecircuits.progress import say, without_bars
from safecircuits.prompts import PromptSet
from safecircuits.results import Result
from safecircuits.rundir import RunDirectory
from safecircuits.sites import HookedModel, LayerRange, ModelShape
from safecircuits.studies.arms import Arm, lisa_arm, paper_arms, sppft
from safecircuits.studies.finetuning import Settings, finetuning_study
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.scenarios import Scenario
from safecircuits.studies.subject import plain_name
from safecircuits.training.lisa import LisaSettings
from safecircuits.training.presets import PresetName
from safecircuits.units.groups import set_difference
from safecircuits.units.importance import score_units

SEARCHES: dict[str, tuple[ComponentSet, Direction]] = {
    "all matrices, up": ("all", "up"),
    "all matrices, down": ("all", "down"),
    "without the output projection, up": ("qkv+mlp", "up"),
}
"""Localizations: the method as written, its other direction, and what the published table was probably made with."""


NFFT_P = 0.1
"""Share of units held useful and therefore not frozen by NFFT; the paper names neither score nor shares."""


@dataclass(frozen=True)
class StudyPrompts:
    """What the study asks; the paper has 100 normal, 100 malicious and 721 over-rejection prompts."""

    normal: PromptSet
    malicious: PromptSet
    over_rejection: PromptSet
    evaluation: PromptSet | None = None
    """Malicious prompts on which refusal is measured (the paper: AdvBench's 520); ``malicious`` unless given."""
    utility: PromptSet | None = None
    """Prompts with known answers."""
    questions: tuple[str, ...] = ()
    """Questions for attention maps: one harmful, one harmless, as in the paper's figures."""
    refused: PromptSet | None = None
    """Malicious prompts with refusals as responses, for NFFT's scores and Lisa's alignment data."""

    @property
    def measured(self) -> PromptSet:
        return self.evaluation or self.malicious


@dataclass(frozen=True)
class StudySettings:
    """How the study is run. Scenarios and arms left empty leave the fine-tuning out."""

    seeds: tuple[int, ...] = (0, 1, 2)
    alpha: float | str = "search"
    reach: int = 2
    detector: str | RefusalDetector = "opening"
    max_new_tokens: int = 8
    template: str = "auto"
    too_far: float = 1.5
    """α of the demonstration that a block can be scaled too far (A.3.4)."""
    attention_template: str = "alpaca-short"
    scenarios: tuple[Scenario, ...] = ()
    training: PresetName | Settings = "paper"
    lisa: LisaSettings | None = None
    """Lisa's own settings; its published defaults unless given."""
    points: int = 8
    """Measurements along each fine-tuning run."""
    curve_prompts: int = 100
    """Malicious prompts of each of them."""
    finetuning_prompts: int | None = None
    """Prompts of each set on which a finished fine-tuning run is measured; all unless given."""
    backend: Backend = "bridge"
    device: Any = None
    dtype: Any = None

    @property
    def judging(self) -> EvaluationOptions:
        """How completions are made and judged, the same wherever the study evaluates."""
        return {"detector": self.detector, "refusal_tokens": self.max_new_tokens, "template": self.template}


@dataclass(frozen=True)
class StudySubject(Result):
    """The model of a study."""

    source: str
    shape: ModelShape
    planted: LayerRange | None
    """The block in which refusal is known to be, for models that were made so."""


@dataclass
class SafetyLayersStudy:
    """All parts of the study of one model; those that were not run are None or empty."""

    source: str
    name: str
    shape: ModelShape
    planted: LayerRange | None = None
    """The block in which refusal is known to be, for models that were made so."""
    behavior: dict[str, Behavior] = field(default_factory=dict)
    detectors: AgreementTable | None = None
    gaps: GapComparison | None = None
    searches: dict[str, Localization] = field(default_factory=dict)
    decision: DecisionLayers | None = None
    check: MaliciousCheck | None = None
    too_far: MaliciousCheck | None = None
    attention: list[AttentionMap] = field(default_factory=list)
    transplant: TransplantTable | None = None
    finetuning: FinetuningStudy | None = None

    @property
    def located(self) -> Localization:
        """The paper's own localization."""
        return self.searches["all matrices, up"]

    @property
    def block(self) -> LayerRange:
        """The located safety layers."""
        return self.located.layers


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
    """
    s = settings or StudySettings()

    def load(which: str) -> HookedModel:
        with without_bars():
            return load_model(which, backend=s.backend, device=s.device, dtype=s.dtype)

    model = load(source)
    subject = run.kept("subject", StudySubject, lambda: StudySubject(source, ModelShape.of(model), planted))
    study = SafetyLayersStudy(subject.source, plain_name(subject.source), subject.shape, subject.planted)
    work = _Work(study, run, prompts, s)
    _behavior(work, model, base, load)
    _existence(work, base, load)
    _localization(work, model)
    _checks(work, model)
    _attention(work, model)
    if base is not None:
        _transplant(work, base)
    if s.scenarios:
        arms = _arms(work, model)
        del model
        study.finetuning = _finetuning(work, arms)
    return study


def saved_study(folder: str | Path) -> SafetyLayersStudy:
    """The study that a complete run directory holds.

    Raises:
        ValueError: if a part is missing or cannot be read.
    """
    kept = Path(folder) / "results"
    subject = StudySubject.load(kept / "subject")
    study = SafetyLayersStudy(subject.source, plain_name(subject.source), subject.shape, subject.planted)
    study.behavior[study.name] = Behavior.load(kept / "behavior")
    if (kept / "behavior_base").is_dir():
        study.behavior["base"] = Behavior.load(kept / "behavior_base")
    study.detectors = AgreementTable.load(kept / "detectors")
    study.gaps = GapComparison.load(kept / "gaps")
    study.searches = {name: Localization.load(kept / f"localization_{i}") for i, name in enumerate(SEARCHES)}
    study.decision = DecisionLayers.load(kept / "decision")
    study.check = MaliciousCheck.load(kept / "malicious_check")
    study.too_far = MaliciousCheck.load(kept / "too_far")
    maps = sorted(kept.glob("attention_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    study.attention = [AttentionMap.load(path) for path in maps]
    if (kept / "transplant").is_dir():
        study.transplant = TransplantTable.load(kept / "transplant")
    if (kept / "finetuning").is_dir():
        study.finetuning = FinetuningStudy.load(kept / "finetuning")
    return study


@dataclass(frozen=True)
class _Work:
    """What the parts share while they run."""

    study: SafetyLayersStudy
    run: RunDirectory
    prompts: StudyPrompts
    settings: StudySettings


def _behavior(
    work: _Work,
    model: HookedModel,
    base: str | None,
    load: Callable[[str], HookedModel],
) -> None:
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
        study.behavior["base"] = run.kept("behavior_base", Behavior, lambda: evaluate(load(base), **sets))

    def judged() -> AgreementTable:
        # Some detectors look for phrases anywhere: they get a whole sentence to look at.
        answers = generate(model, p.over_rejection, max_new_tokens=2 * s.max_new_tokens, template=s.template)
        return agreement(answers)

    study.detectors = run.kept("detectors", AgreementTable, judged)


def _existence(work: _Work, base: str | None, load: Callable[[str], HookedModel]) -> None:
    say("angle gaps")
    study, run, p, s = work.study, work.run, work.prompts, work.settings
    sources = {study.name: study.source} | ({} if base is None else {"base": base})
    models = {name: (lambda which=which: load(which)) for name, which in sources.items()}
    study.gaps = run.kept(
        "gaps",
        GapComparison,
        lambda: compare_gaps(models, p.normal, p.malicious, template=s.template, seed=s.seeds[0]),
    )


def _localization(work: _Work, model: HookedModel) -> None:
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
                detector=s.detector,
                max_new_tokens=s.max_new_tokens,
                template=s.template,
                resume=run.work(f"sweep_{number}.jsonl"),
                progress=True,
            )

        study.searches[name] = run.kept(f"localization_{number}", Localization, search)
    say("decision layers")
    study.decision = run.kept(
        "decision",
        DecisionLayers,
        lambda: decision_layers(
            model,
            p.normal,
            p.malicious,
            detector=s.detector,
            max_new_tokens=s.max_new_tokens,
            template=s.template,
        ),
    )


def _checks(work: _Work, model: HookedModel) -> None:
    say("malicious queries answered, and a block scaled too far")
    study, run, p, s = work.study, work.run, work.prompts, work.settings
    located = study.located

    def check(prompts: PromptSet, alpha: float) -> MaliciousCheck:
        return answered_malicious(
            model,
            prompts,
            located.layers,
            alpha,
            detector=s.detector,
            max_new_tokens=s.max_new_tokens,
            template=s.template,
        )

    study.check = run.kept("malicious_check", MaliciousCheck, lambda: check(p.measured, located.alpha))
    study.too_far = run.kept("too_far", MaliciousCheck, lambda: check(p.over_rejection, s.too_far))


def _attention(work: _Work, model: HookedModel) -> None:
    template = work.settings.attention_template
    for number, question in enumerate(work.prompts.questions):
        say(f"attention: {question!r}")

        def ask(question: str = question) -> AttentionMap:
            return attention_map(model, question, template=template)

        work.study.attention.append(work.run.kept(f"attention_{number}", AttentionMap, ask))


def _transplant(work: _Work, base: str) -> None:
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


def _arms(work: _Work, model: HookedModel) -> tuple[Arm, ...]:
    """The paper's arms on the located block, and freezing the decision layers where those are others."""
    study = work.study
    decision = study.decision.layers if study.decision is not None else None
    whole = len(study.block) == study.shape.n_layers  # freezing everything is no arm
    block = decision if whole and decision is not None else study.block
    arms = paper_arms(block, study.shape)
    if work.prompts.refused is not None and work.prompts.utility is not None:
        arms += (_nfft(work, model, block),)
    if work.prompts.refused is not None:
        arms += (lisa_arm(work.prompts.refused, work.settings.lisa),)
    if decision is not None and decision != block:
        arms += (sppft(decision, "decision layers"),)
    return arms


def _nfft(work: _Work, model: HookedModel, block: LayerRange) -> Arm:
    """Units of Wei et al.'s set difference by SNIP, as large a share of the unit parameters as the block is."""
    say("unit scores for NFFT")
    assert work.prompts.refused is not None
    assert work.prompts.utility is not None
    template = work.settings.template
    safety = score_units(model, work.prompts.refused, method="snip", template=template)
    utility = score_units(model, work.prompts.utility, method="snip", template=template)
    share = len(block) / work.study.shape.n_layers
    groups = set_difference(safety, utility, p=NFFT_P, result=share, share_of="parameters")
    return Arm("nfft", f"{share:.0%} of the unit parameters, by SNIP set difference", FreezeMask.units(groups, "SCU"))


def _finetuning(work: _Work, arms: Sequence[Arm]) -> FinetuningStudy:
    say("fine-tuning study")
    study, run, p, s = work.study, work.run, work.prompts, work.settings
    n = s.finetuning_prompts

    def tune() -> FinetuningStudy:
        return finetuning_study(
            study.source,
            s.scenarios,
            arms,
            malicious=p.measured.at_most(n),
            over_rejection=p.over_rejection.at_most(n),
            utility=None if p.utility is None else p.utility.at_most(n),
            seeds=s.seeds,
            settings=s.training,
            points=s.points,
            curve_prompts=s.curve_prompts,
            evaluation=s.judging,
            out=run.work("finetuning"),
            backend=s.backend,
            device=s.device,
            dtype=s.dtype,
        )

    return run.kept("finetuning", FinetuningStudy, tune)
