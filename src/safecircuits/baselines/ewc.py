"""Elastic weight consolidation: weights that refusals depend on are held where they were (Kirkpatrick et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from safecircuits.baselines.gradients import OF_ITS_OWN, mean_loss_gradients
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode, require_answered
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun

_START, _FISHER = "start.", "fisher."


@register("ewc")
@dataclass(frozen=True)
class Ewc(Method):
    """Each weight is pulled to where it was as strongly as refusals depend on it (Kirkpatrick et al. 2017).

    The loss gains λ/2 Σ F (θ − θ₀)², where F is the diagonal of the Fisher information at θ₀: the mean over the
    alignment prompts of the squared gradient of their answers' mean log-likelihood a token.

    Attributes:
        alignment: harmful prompts with refusals, or whatever is to be kept, with its answers.
        strength: λ.

    Examples:
        >>> sc.baselines.Ewc(utility, strength=10.0).strength
        10.0
    """

    alignment: PromptSet
    strength: float = 1000.0

    refuses: ClassVar[Mapping[str, str]] = {"shard": OF_ITS_OWN}
    badge: ClassVar[Badge] = "variant"
    paper: ClassVar[str] = "Kirkpatrick et al. 2017, equation 3"
    differs: ClassVar[str] = "the Fisher information is of the given answers and not of sampled ones"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_answered(self.alignment, "alignment")
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength}, expected 0 or more: it weighs a penalty")

    def train(self, job: TrainingJob) -> FinetuneRun:
        examples = encode(job.tokenizer, self.alignment, template=job.settings.template, with_responses=True)
        return train_weights(replace(job, on_gradients=Consolidation(job.model, examples, self.strength)))


class Consolidation:
    """Adds λ F (θ − θ₀) to the gradients; F and θ₀ are taken before the first step."""

    def __init__(self, model: Any, examples: Sequence[Encoded], strength: float) -> None:
        self.model, self.examples, self.strength = model, examples, strength
        self.start: dict[str, Tensor] = {}
        self.fisher: dict[str, Tensor] = {}

    def __call__(self, step: int, trained: Mapping[str, nn.Parameter]) -> None:
        if step == 0:
            self.start = {name: p.detach().clone() for name, p in trained.items()}
            self.fisher = fisher_diagonal(self.model, self.examples, trained)
        with torch.no_grad():
            for name, p in trained.items():
                if p.grad is not None:
                    p.grad.add_(self.fisher[name] * (p - self.start[name]), alpha=self.strength)

    def state(self) -> Mapping[str, Tensor]:
        starts = {_START + name: value for name, value in self.start.items()}
        return starts | {_FISHER + name: value for name, value in self.fisher.items()}

    def restore(self, state: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]) -> None:
        self.start = {name: state[_START + name].to(p) for name, p in trained.items()}
        self.fisher = {name: state[_FISHER + name].to(p) for name, p in trained.items()}


def fisher_diagonal(model: Any, examples: Sequence[Encoded], trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The mean over examples of the squared gradient of an answer's mean log-likelihood a token."""
    sums = {name: torch.zeros_like(p) for name, p in trained.items()}
    for example in examples:
        for name, gradient in mean_loss_gradients(model, [example], trained).items():
            sums[name] += gradient.square()
    return {name: total / len(examples) for name, total in sums.items()}
