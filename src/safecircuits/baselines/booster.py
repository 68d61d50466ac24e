"""Booster: alignment after which a harmful step helps an attacker less (Huang et al. 2025)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from safecircuits.baselines.gradients import OF_ITS_OWN, mean_loss_gradients
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode, require_answered
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun


@register("booster")
@dataclass(frozen=True)
class Booster(Method):
    """What a step on harmful data would gain is made small while ``data``, refusals, are learnt (Huang et al. 2025).

    Minimises f(w) + λ (h(w) − h(w − α ∇h(w) / ‖∇h(w)‖)), where h is the loss on harmful data; the step is taken as a
    constant when the gradient is. A step costs about three. Signs, norm and defaults are those of the authors' code.

    Attributes:
        harmful: harmful prompts with compliance, the user's own; as many rows of it a step as of the data.
        strength: λ; 0 is plain training to the bit.
        step_length: α, the length of the harmful step.

    Examples:
        >>> sc.baselines.Booster(utility).step_length
        0.1
    """

    harmful: PromptSet
    strength: float = 5.0
    step_length: float = 0.1

    refuses: ClassVar[Mapping[str, str]] = {"shard": OF_ITS_OWN}
    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Huang et al. 2025 (Booster), equation 1 and algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_answered(self.harmful, "harmful")
        for name in ("strength", "step_length"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")

    def train(self, job: TrainingJob) -> FinetuneRun:
        examples = encode(job.tokenizer, self.harmful, template=job.settings.template, with_responses=True)
        attenuation = Attenuation(job.model, examples, self, job.settings.per_step, job.seed)
        return train_weights(replace(job, on_gradients=attenuation))


class Attenuation:
    """Adds λ (∇h(w) − ∇h(w − α ∇h / ‖∇h‖)) to the gradients."""

    def __init__(self, model: Any, examples: Sequence[Encoded], method: Booster, per_step: int, seed: int) -> None:
        self.model, self.examples, self.method = model, examples, method
        self.per_step, self.seed = min(per_step, len(examples)), seed

    def __call__(self, step: int, trained: Mapping[str, nn.Parameter]) -> None:
        if not self.method.strength:
            return
        rows = random.Random(f"{self.seed} {step} harmful").sample(range(len(self.examples)), self.per_step)
        harmful = [self.examples[row] for row in rows]
        here = mean_loss_gradients(self.model, harmful, trained)
        norm = torch.stack([gradient.norm() for gradient in here.values()]).norm()
        if not norm > 0:
            return
        kept = {name: p.detach().clone() for name, p in trained.items()}
        try:
            with torch.no_grad():
                for name, p in trained.items():
                    p.sub_(here[name] * (self.method.step_length / norm))
            there = mean_loss_gradients(self.model, harmful, trained)
        finally:
            with torch.no_grad():
                for name, p in trained.items():
                    p.copy_(kept[name])
        for name, p in trained.items():
            if p.grad is not None:
                p.grad.add_(here[name] - there[name], alpha=self.method.strength)
