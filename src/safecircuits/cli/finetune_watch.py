"""What ``safecircuits finetune`` measures: before training, on the way and after it, with every answer kept."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safecircuits.cli.canvas import axis
from safecircuits.cli.distance import Distance

if TYPE_CHECKING:
    from safecircuits.behavior.judge import JudgeDetector
    from safecircuits.behavior.measured import Behavior
    from safecircuits.cli.frame import Run
    from safecircuits.model.as_it_was import AsItWas
    from safecircuits.model.sites import HookedModel
    from safecircuits.prompts.chat_set import TrainingData
    from safecircuits.results.run import RunDirectory
    from safecircuits.training.guard import SafetyGuard
    from safecircuits.training.run import FinetuneRun

CURVES = "What is refused and answered right, by step of fine-tuning"


def watching(sets: dict[str, Any], by: str | JudgeDetector, max_new_tokens: int | None) -> dict[str, Any]:
    """How ``evaluate`` is to measure.

    As many tokens are written as the detector or the judge needs, unless a limit is given; what that costs is said
    once, and not with every point of a curve.
    """
    from safecircuits.behavior.verdict import notice_needed

    judged = [prompts for name, prompts in sets.items() if name != "utility"]
    needed = notice_needed(by, sum(map(len, judged))) if judged and max_new_tokens is None else None
    return {"detector": by, "max_new_tokens": max_new_tokens, "refusal_tokens": needed}


class Watch:
    """A callback of training with the figures of ``evaluate``, which keeps what it measured in the run's folder.

    Attributes:
        guard: says whether a measurement ends the run; None: nothing does.
        first: what was measured before training; None where there is nothing to measure.
        unchanged: the model before training, to which answers must be language; None if it cannot tell, or not yet.
    """

    def __init__(self, folder: RunDirectory, sets: dict[str, Any], how: dict[str, Any]) -> None:
        self._folder, self._sets, self._how = folder, sets, how
        self.guard: SafetyGuard | None = None
        self.first: Behavior | None = None
        self._far: Distance | None = None
        self.unchanged: HookedModel | AsItWas | None = None

    @property
    def halts(self) -> bool:
        return self.guard is not None

    @property
    def rewinds(self) -> bool:
        return self.guard is not None and self.guard.rewinds

    def __call__(self, model: Any, step: int) -> Any:
        from safecircuits.training.halting import Halt

        found = self._measure(model, step, progress=False)
        said = found.figures if self.guard is None else self.guard.verdict(found)
        if isinstance(said, Halt):
            return replace(said, figures={**said.figures, **found.kl_means})
        return {**said, **found.kl_means}

    def before(self, model: Any, taught: TrainingData) -> Behavior | None:
        """What is measured before training on these rows, or was by an interrupted run that got so far."""
        from safecircuits.behavior.coherence import that_knows
        from safecircuits.model.as_it_was import AsItWas

        if self._sets:
            then = AsItWas(model, self._folder.work("unchanged"))
            tokens = self._how["refusal_tokens"] or self._how["max_new_tokens"]
            self.unchanged = that_knows(then, taught, tokens=tokens, template=self._how["template"])
            self.first = self._at(0) or self._measure(model, 0, progress=True)
            self._far = Distance(model, self._sets, self._how["template"])
        return self.first

    def left(self, trained: FinetuneRun) -> Behavior | None:
        """What was measured of the weights that the run left, which are not the last ones where it was rewound."""
        step = trained.left().get("step")
        return None if step is None or self.first is None else self._at(step)

    def write(self, run: Run, trained: FinetuneRun) -> None:
        """Before against after, prompt by prompt; the answers; and the curve between."""
        import pandas as pd

        from safecircuits.behavior.change import BehaviorChange
        from safecircuits.plots.loss import plot_rates_by_step

        after = self.left(trained)
        if self.first is None or after is None:
            return
        found = BehaviorChange(self.first, after)
        self._folder.result("behavior", found)
        self._folder.tables("rates", found)
        for name, behavior in (("before", found.before), ("after", found.after)):
            for of, verdicts in behavior.answers.items():
                verdicts.save_lines(self._folder.file(f"completions/{of}_{name}.jsonl"))
        if after.kl:
            self._folder.table("kl", Distance.table(after.kl))
        points = ({"step": 0, **self.first.figures, **dict.fromkeys(after.kl_means, 0.0)}, *trained.evaluations)
        self._folder.table("curves", pd.DataFrame(list(points)))
        self._folder.figure("curves", plot_rates_by_step(points, ax=axis((4.2, 2.4))), shows=CURVES)
        run.answer(**found.record())
        run.say(str(found))

    def _measure(self, model: Any, step: int, *, progress: bool) -> Behavior:
        from safecircuits.behavior.evaluate import evaluate

        found = evaluate(model, **self._sets, **self._how, unchanged=self.unchanged, progress=progress)
        if self._far is not None:
            found = replace(found, kl=self._far.of(model))
        found.save(self._folder.work(f"measured/{step}"))
        return found

    def _at(self, step: int) -> Behavior | None:
        from safecircuits.behavior.measured import Behavior

        folder = self._folder.work(f"measured/{step}")
        return Behavior.load(folder) if folder.is_dir() else None
