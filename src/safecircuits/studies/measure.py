"""What a study measures in a run: behaviour, held-out loss, the curve on the way, and what training costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from safecircuits.behavior.coherence import Unchanged
from safecircuits.behavior.divergence import KLReference, divergences
from safecircuits.behavior.evaluate import UTILITY_TOKENS, EvaluationOptions, answer_lengths, evaluate
from safecircuits.behavior.reference import response_loss
from safecircuits.behavior.verdict_table import Verdicts
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.training.optimizers import make_optimizer
from safecircuits.training.settings import TrainingSettings

ExtraMetric = Callable[[Any, PromptSet], float | Mapping[str, float]]
"""A figure of your own from the fine-tuned model and the scenario's held-out rows, such as Rouge-L, a judge's score, or
MMLU by lm-evaluation-harness (which needs no rows). Or several by name: a rate of refusals with what stands
beside it (``Tally.record``), say."""


@dataclass
class ScenarioMetrics:
    """Measures a model for one scenario, at the end of a run and on the way.

    Attributes:
        options: prompt sets and generation settings of ``evaluate``.
        held_out: the scenario's task.
        curve_prompts: how many of the malicious prompts the curve looks at.
        extra: more figures of the finished model by name.
        references: what the model says before training, to which the KL is measured afterwards; see ``references_of``.
    """

    options: EvaluationOptions
    held_out: PromptSet
    curve_prompts: int
    extra: Mapping[str, ExtraMetric] = field(default_factory=dict)
    references: Mapping[str, KLReference] = field(default_factory=dict)
    unchanged: Unchanged | None = None
    """The model before training, which says whether answers are language."""
    _shortest: tuple[Any, int] = field(default=(None, 0), init=False, repr=False, compare=False)
    """A tokenizer, and the tokens of the shortest held-out answer by it: all models of a scenario have the same."""

    def point(self, model: Any) -> dict[str, float]:
        """A point of the curve: refusal of malicious prompts, and the task loss."""
        malicious = self.options["malicious"]
        assert malicious is not None
        sets: EvaluationOptions = {**self.options, "malicious": malicious.at_most(self.curve_prompts)}
        sets |= {"over_rejection": None, "utility": None, "unchanged": self.unchanged}
        return {**evaluate(model, **sets).figures, "task_loss": self.task_loss(model)}

    def figures(self, model: Any) -> tuple[dict[str, float], dict[str, Verdicts]]:
        """All figures of a model, and the answers that they count, by set; those of the task are ``task``.

        The figures: ``malicious_refused``, ``over_rejected``, ``utility``, ``task_score``, …, and beside each rate of
        refusals of how many answers it is (``Behavior.figures``); with references ``harmless_first_token_kl``,
        ``malicious_per_token_kl`` and so on, in nats (``Behavior.kl_means``). Where every held-out answer is too
        long to be matched, there is a loss and no score, which could only be 0.
        """
        asked: EvaluationOptions = {**self.options, "unchanged": self.unchanged}
        found = replace(evaluate(model, **asked), kl=divergences(self.references, model))
        figures, answers = found.figures | found.kl_means, dict(found.answers)
        if self._can_be_right(model):
            options: EvaluationOptions = {**self.options, "malicious": None, "over_rejection": None}
            options["utility"] = self.held_out
            task = evaluate(model, **options)
            figures["task_score"], answers["task"] = task.rates["utility"], task.answers["utility"]
        figures["task_loss"] = self.task_loss(model)
        if (utility := self.options.get("utility")) is not None:
            figures["utility_loss"] = self._loss(model, utility)
        for name, metric in self.extra.items():
            value = metric(model, self.held_out)
            named = value if isinstance(value, Mapping) else {name: value}
            figures |= {one: float(number) for one, number in named.items()}
        return figures, answers

    def task_loss(self, model: Any) -> float:
        """Mean cross-entropy in nats per response token of the held-out rows."""
        return self._loss(model, self.held_out)

    def _loss(self, model: Any, data: PromptSet) -> float:
        return response_loss(model, data, template=self.options.get("template", "auto")).loss

    def _can_be_right(self, model: Any) -> bool:
        """Whether any held-out answer can be: all graded by their numbers, else those that fit into a completion."""
        if self.options.get("grading", "exact") != "exact":
            return True
        tokenizer = getattr(model, "tokenizer", None)
        if tokenizer is None:
            return False
        if self._shortest[0] is not tokenizer:
            self._shortest = tokenizer, min(answer_lengths(model, self.held_out))
        return self._shortest[1] <= (self.options.get("max_new_tokens") or UTILITY_TOKENS)


class Curve:
    """A callback of ``finetune`` that measures a point, and knows how long training took without the measuring."""

    def __init__(self, metrics: ScenarioMetrics) -> None:
        self.metrics, self.measuring, self.trained_until = metrics, 0.0, 0.0

    def __call__(self, model: Any, _step: int) -> dict[str, float]:
        began = time.perf_counter()
        self.trained_until = began - self.measuring
        point = self.metrics.point(model)
        self.measuring += time.perf_counter() - began
        return point

    def training_seconds(self, optimizer: WatchedOptimizer) -> float:
        """From the making of the optimizer, when the steps begin, to the end of the last step."""
        return self.trained_until - optimizer.made


class WatchedOptimizer:
    """Makes the optimizer that ``finetune`` would make, and keeps hold of it to weigh its state afterwards."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.made = 0.0  # when the first of them was: training in phases makes one a phase
        self.__qualname__ = settings.record()["optimizer"]

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        settings = self.settings
        self.optimizer = make_optimizer(settings.optimizer, parameters, settings.lr, settings.weight_decay)
        self.made = self.made or time.perf_counter()
        return self.optimizer

    @property
    def state_bytes(self) -> int:
        """Memory of the optimizer's state: tensors as large as what trains (two of them for AdamW)."""
        return sum(
            value.numel() * value.element_size()
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )

    @property
    def gradient_bytes(self) -> int:
        """Memory of the gradients: one entry for each that trains."""
        return sum(p.numel() * p.element_size() for group in self.optimizer.param_groups for p in group["params"])
