"""The fine-tuning study of Safety Layers (§4, A.4): arms × scenarios × seeds, resumable, all but the arm matched."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from safecircuits.base.arguments import checked
from safecircuits.base.files import write_text
from safecircuits.base.progress import track
from safecircuits.behavior.answers import of_plain, plain
from safecircuits.behavior.coherence import that_knows
from safecircuits.behavior.divergence import TOKENS, KLReference, references_of
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.behavior.verdict_table import Verdicts
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.as_it_was import AsItWas
from safecircuits.model.fingerprint import weights_fingerprint
from safecircuits.model.load import Backend
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.prompts.leaks import tell_overlaps
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.arms import Arm
from safecircuits.studies.hyperparameters import settings_for
from safecircuits.studies.kept import short, slug
from safecircuits.studies.measure import Curve, ExtraMetric, ScenarioMetrics, WatchedOptimizer
from safecircuits.studies.outcome import FinetuningStudy, StudyRun
from safecircuits.studies.scenarios import Scenario
from safecircuits.studies.subject import Subject
from safecircuits.training.loop import finetune
from safecircuits.training.presets import PresetName
from safecircuits.training.settings import TrainingSettings


@checked
def finetuning_study(
    model: Any,
    scenarios: Sequence[Scenario],
    arms: Sequence[Arm],
    *,
    malicious: PromptSet,
    over_rejection: PromptSet | None = None,
    utility: PromptSet | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    settings: PresetName | TrainingSettings = "paper",
    preset_model: str | None = None,
    points: int = 8,
    curve_prompts: int = 100,
    evaluation: EvaluationOptions | None = None,
    extra: Mapping[str, ExtraMetric] | None = None,
    out: str | Path | None = None,
    backend: Backend = "bridge",
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
) -> FinetuningStudy:
    """Fine-tune the same model in every arm, scenario and seed, and measure what is left of its refusals.

    Within a scenario all arms share data, order of data, and hyper-parameters. Only one copy of the model is in memory:
    a model given by name, folder or hub id is loaded again for each run; a model object is put back from disk, and is
    what it was when the study ends.

    Args:
        scenarios, arms: what to train on and what to freeze; see ``paper_scenarios`` and ``paper_arms``.
        malicious: prompts whose refusal is measured. R_h, the paper's harmful rate, is the share not refused.
        over_rejection, utility: more prompts, as in ``evaluate``; the utility set has responses.
        seeds: decide the order of the data, and what the arms that draw freeze.
        settings: ``"paper"`` or ``"code"`` for the published hyper-parameters, or a ``TrainingSettings``.
        preset_model: the paper's model whose preset to take; by default the name of the model itself.
        points: measurements of refusal and task loss during training, so that arms can be compared at matched loss.
        curve_prompts: malicious prompts, the first of the set, that these look at.
        evaluation: more arguments of ``evaluate`` (detector, max_new_tokens, …).
        extra: figures of your own by name, measured on the model before and after each run; called with the model and
            the scenario's held-out rows.
        out: a folder where every finished run is kept; the same call goes on where an interrupted one stopped, and
            a call with other seeds, arms or scenarios adds only what is missing. Your own detectors and metrics count
            by their names.

    Raises:
        ValueError: for names that occur twice, nothing to run, an unknown preset, settings that stop early, and those
            that the method of an arm cannot serve, such as runs that are too short for Lisa.

    Examples:
        >>> task = sc.studies.Scenario("task", train=utility, held_out=normal)
        >>> arms = sc.studies.paper_arms((3, 5), sc.ModelShape.of(model))[:2]
        >>> settings = sc.TrainingSettings(steps=2, batch_size=4)
        >>> study = sc.studies.finetuning_study(
        ...     "aligned", [task], arms, malicious=malicious, seeds=(0,), settings=settings, points=1, progress=False
        ... )
        >>> study.arms
        ('full', 'sppft')
        >>> len(study.runs)
        2
    """
    seeds = [int(seed) for seed in seeds]  # those of a numpy range cannot be saved
    _check(scenarios, arms, seeds)
    trained_on: dict[str, PromptSet | None] = {f"the training rows of {s.name}": s.train for s in scenarios}
    tell_overlaps(trained_on, {"malicious": malicious, "over_rejection": over_rejection, "utility": utility})
    subject = Subject(model, backend=backend, device=device, dtype=dtype)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            study = _Study(subject, Path(out or scratch), points, curve_prompts, extra or {})
            study.options = {"malicious": malicious, "over_rejection": over_rejection, "utility": utility}
            study.options.update(evaluation or {})
            hyper = {s.name: settings_for(settings, preset_model or subject.name, s) for s in scenarios}
            for scenario in scenarios:
                if hyper[scenario.name].stop_at_loss is not None:
                    raise ValueError("settings hold stop_at_loss: arms of a study train for equally many steps")
                for arm in arms:
                    if arm.prepare is not None:
                        raise ValueError(f"arm {arm.name!r} is aligned anew before it is attacked: use attack_study")
                    arm.method.require(_of_arm(arm, scenario, hyper[scenario.name]), freeze=arm.mask)
            # Arms of a seed stand side by side in time, so that what else the machine does hits all of them alike.
            todo = [(scenario, seed, arm) for scenario in scenarios for seed in seeds for arm in arms]
            runs = [
                study.run(scenario, arm, seed, hyper[scenario.name])
                for scenario, seed, arm in track(todo, "fine-tuning study", enabled=progress)
            ]
            fingerprint, before = study.fingerprint, study.before
    finally:
        subject.close()
    return FinetuningStudy(
        runs=tuple(runs),
        frozen={arm.name: arm.frozen for arm in arms},
        settings={name: found.record() for name, found in hyper.items()},
        provenance={
            "model": subject.name,
            "weights": fingerprint,
            "seeds": list(seeds),
            "malicious": malicious.identity,
            "scenarios": {s.name: {"train": s.train.name, "sha": s.train.fingerprint} for s in scenarios},
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": study.device,
        },
        before=before,
    )


class _Study:
    """What all runs share: the model, the folder, and how things are measured."""

    options: EvaluationOptions
    before: dict[str, dict[str, Verdicts]]
    """By scenario, what the model answers before any training."""

    def __init__(
        self, subject: Subject, out: Path, points: int, curve_prompts: int, extra: Mapping[str, ExtraMetric]
    ) -> None:
        self.subject, self.out, self.points = subject, out, points
        self.curve_prompts, self.extra, self.before = curve_prompts, extra, {}
        self.references: dict[str, dict[str, KLReference]] = {}
        self._tells: dict[tuple[str, str], bool] = {}
        with subject.untouched() as model:
            self.fingerprint, self.shape = weights_fingerprint(model), ModelShape.of(model)
            self.device = str(next(iter(model.parameters())).device)

    def run(self, scenario: Scenario, arm: Arm, seed: int, settings: TrainingSettings) -> StudyRun:
        """One run, from its file if it is there."""
        mask = arm.mask_for(self.shape, seed)
        identity = self._identity(scenario, settings) | {
            "train": scenario.train.fingerprint,
            "arm": arm.describe(),
            "mask": None if mask is None else mask.fingerprint,
            "seed": seed,
            "points": self.points,
            "kl": TOKENS,
        }
        path = self.out / "runs" / f"{slug(scenario.name)}-{slug(arm.name)}-{seed}-{short(identity)}.json"
        if path.exists():
            self._before(scenario, settings, self._metrics(scenario, settings))
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["run"]
            # The key of a run is what decides it; what it is called is for the reader.
            return StudyRun.of(record | {"arm": arm.name, "scenario": scenario.name})
        run = self._train(scenario, arm, mask, seed, settings)
        write_text(path, json.dumps({"identity": identity, "run": run.plain()}) + "\n")
        return run

    def _train(
        self, scenario: Scenario, arm: Arm, mask: FreezeMask | None, seed: int, settings: TrainingSettings
    ) -> StudyRun:
        metrics = self._metrics(scenario, settings)
        before = self._before(scenario, settings, metrics)
        metrics.references = self._references(settings)
        curve, optimizer = Curve(metrics), WatchedOptimizer(settings)
        settings = replace(_of_arm(arm, scenario, settings), optimizer=optimizer)
        every = max(1, settings.steps_on(len(scenario.train)) // self.points)
        with self.subject.fresh() as model:
            metrics.unchanged = AsItWas(model) if self._tells_salad(model, scenario, settings) else None
            on_gpu = torch.cuda.is_available()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            run = finetune(
                model,
                scenario.train,
                mask,
                settings,
                method=arm.method,
                seed=seed,
                callbacks=[curve],
                eval_every=every,
                progress=False,
            )
            peak = torch.cuda.max_memory_allocated() if on_gpu else None
            figures, answers = metrics.figures(model if run.tuned is None else run.tuned)
            n_parameters = sum(p.numel() for p in checkpoint_parameters(model).values())
        start = {"step": 0.0, **before["point"]}
        return StudyRun(
            arm=arm.name,
            scenario=scenario.name,
            seed=seed,
            before={name: 0.0 for name in figures if name.endswith("_kl")} | before["figures"],
            figures=figures,
            curve=(start, *(dict(point) for point in run.evaluations)),
            train_loss=run.final_loss(),
            steps=run.steps,
            step_seconds=curve.training_seconds(optimizer) / run.steps,
            n_trainable=run.n_trainable,
            n_frozen=run.n_frozen,
            share_frozen=run.n_frozen / n_parameters,
            gradient_bytes=optimizer.gradient_bytes,
            optimizer_bytes=optimizer.state_bytes,
            peak_bytes=peak,
            frozen_bit_identical=run.frozen_bit_identical,
            answers=answers,
        )

    def _before(
        self, scenario: Scenario, settings: TrainingSettings, metrics: ScenarioMetrics
    ) -> dict[str, dict[str, Any]]:
        """What the model does before any training, once for each scenario and template."""
        path = self.out / "before" / f"{slug(scenario.name)}-{short(self._identity(scenario, settings, False))}.json"
        if not path.exists():
            with self.subject.untouched() as model:
                metrics.unchanged = model
                figures, answers = metrics.figures(model)
                measured = {"figures": figures, "point": metrics.point(model), "answers": plain(answers)}
            write_text(path, json.dumps(measured) + "\n")
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        self.before[scenario.name] = of_plain(found.get("answers") or {})  # files of earlier versions have none
        return found

    def _references(self, settings: TrainingSettings) -> dict[str, KLReference]:
        """What the untrained model says next, on as many prompts as the curve looks at; kept for all runs."""
        if settings.template not in self.references:
            sets: dict[str, Any] = {"template": settings.template}
            for of, prompts in self.options.items():
                if isinstance(prompts, PromptSet):
                    sets[of] = prompts.at_most(self.curve_prompts)
            with self.subject.untouched() as model:
                self.references[settings.template] = references_of(model, sets)
        return self.references[settings.template]

    def _tells_salad(self, model: HookedModel, scenario: Scenario, settings: TrainingSettings) -> bool:
        """Whether the model, as it is before training, takes what the scenario teaches for language."""
        key = scenario.train.fingerprint, settings.template
        if key not in self._tells:
            tokens = self.options.get("refusal_tokens") or self.options.get("max_new_tokens")
            known = that_knows(model, scenario.train, tokens=tokens, template=settings.template)
            self._tells[key] = known is not None
        return self._tells[key]

    def _metrics(self, scenario: Scenario, settings: TrainingSettings) -> ScenarioMetrics:
        template: EvaluationOptions = {"template": settings.template}
        return ScenarioMetrics({**template, **self.options}, scenario.held_out, self.curve_prompts, self.extra)

    def _identity(self, scenario: Scenario, settings: TrainingSettings, training: bool = True) -> dict[str, Any]:
        """What decides a measurement; with ``training`` the hyper-parameters too."""
        options = {
            name: value.fingerprint if isinstance(value, PromptSet) else getattr(value, "__qualname__", value)
            for name, value in self.options.items()
        }
        return {
            "weights": self.fingerprint,
            "held_out": scenario.held_out.fingerprint,
            "options": options,
            "curve_prompts": self.curve_prompts,
            "extra": sorted(self.extra),
            "incoherent": "by words, and by tokens where what is taught is language to the model before",
            "settings": settings.record() if training else {"template": settings.template},
            "backend": self.subject.backend,
        }


def _check(scenarios: Sequence[Scenario], arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    named = {"scenario": [s.name for s in scenarios], "arm": [a.name for a in arms], "seed": [str(s) for s in seeds]}
    for what, names in named.items():
        if not names:
            raise ValueError(f"a study needs at least one {what}")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{what} {twice!r} is there twice; give each its own")


def _of_arm(arm: Arm, scenario: Scenario, settings: TrainingSettings) -> TrainingSettings:
    """The settings of a run, whose length is in steps: an arm may take several times the others'."""
    return settings.changed(steps=arm.longer * settings.steps_on(len(scenario.train)))
