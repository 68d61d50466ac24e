"""Lisa, a baseline of Safety Layers' Table 3: fine-tuning in two states with a proximal term (Huang et al. 2024).

Training alternates between some steps on alignment data and some on the user's data. In each state the loss gains
ρ/2 · ‖w − w̃‖², where w̃ are the weights with which the other state ended, so that neither drifts far from the other.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from safecircuits.base.arguments import whole
from safecircuits.prompts.prompt_set import PromptSet, require_answered
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun
from safecircuits.training.settings import TrainingSettings
from safecircuits.training.sharding import sharded_like


@register("lisa")
@dataclass(frozen=True)
class Lisa(Method):
    """Alignment data and the user's in turn, with a proximal term (Huang et al. 2024); twice the memory of what trains.

    The defaults are those of the authors' script for their main table. ``steps`` are of both states together.

    Attributes:
        alignment: prompts with the answers of a safe model, such as refused harmful ones.
        rho: weight of the proximal term.
        alignment_steps: optimizer steps on alignment data, the first state, before it changes to the other.
        user_steps: optimizer steps on the user's data before it changes back.
        free_share: the share of all steps, from the first one, without the proximal term (their code's; the paper has
            none).

    Raises:
        ValueError: if the run is too short to reach the user's data.

    Examples:
        >>> sc.baselines.Lisa(utility).scaled(40).alignment_steps
        2
    """

    alignment: PromptSet
    rho: float = 1.0
    alignment_steps: int = 100
    user_steps: int = 900
    free_share: float = 0.1

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Huang et al. 2024 (Lisa), algorithm 1"

    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("epochs", "stop_at_loss"), "it has states of its own, counted in steps"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho < 0:
            raise ValueError(f"rho is {self.rho}, expected 0 or more: it weighs a penalty")
        require_answered(self.alignment, "alignment")

    def scaled(self, steps: int, rounds: int = 2) -> Lisa:
        """The same proportions in a run of ``steps`` steps, so that it goes ``rounds`` times through both states."""
        steps, rounds = whole(steps, "steps", 1), whole(rounds, "rounds", 1)
        length = max(2, steps // rounds)
        alignment = max(1, round(length * self.alignment_steps / (self.alignment_steps + self.user_steps)))
        return replace(self, alignment_steps=alignment, user_steps=max(1, length - alignment))

    def require(self, settings: TrainingSettings, **arguments: Any) -> None:
        super().require(settings, **arguments)
        if settings.steps is None:
            raise ValueError("lisa has states of its own, counted in steps: give steps")
        if settings.steps <= self.alignment_steps:
            raise ValueError(
                f"{settings.steps} steps end within the first {self.alignment_steps} on alignment data: "
                f"train longer, or with the method's .scaled({settings.steps})"
            )

    def aligning(self, step: int) -> bool:
        """Whether a step (from 0) is on alignment data."""
        return step % (self.alignment_steps + self.user_steps) < self.alignment_steps

    def train(self, job: TrainingJob) -> FinetuneRun:
        assert job.settings.steps is not None
        states = States(len(job.data), self, job.settings.per_step, job.seed)
        proximal = _Proximal(self, first=round(self.free_share * job.settings.steps))
        return train_weights(replace(job, data=job.data + self.alignment, rows=states.rows, on_gradients=proximal))


class States:
    """Which rows of the user's data, followed by the alignment data, each step sees."""

    def __init__(self, n_user: int, settings: Lisa, per_step: int, seed: int) -> None:
        self.n_user, self.n_alignment, self.per_step = n_user, len(settings.alignment), per_step
        self.settings, self.seed = settings, seed

    def rows(self, step: int) -> list[int]:
        aligning = self.settings.aligning(step)
        start, n = (self.n_user, self.n_alignment) if aligning else (0, self.n_user)
        drawn = random.Random(f"{self.seed} {step} {'alignment' if aligning else 'user'}")
        return [start + i for i in drawn.sample(range(n), min(self.per_step, n))]


class _Proximal:
    """Adds ρ · (w − w̃) to the gradients, where w̃ are the weights at the last change of state."""

    def __init__(self, settings: Lisa, first: int) -> None:
        self.settings, self.first = settings, first
        self.anchor: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, step: int, trained: Mapping[str, nn.Parameter]) -> None:
        changed = step == 0 or self.settings.aligning(step) != self.settings.aligning(step - 1)
        if changed:  # the weights are still those that the other state ended with
            self.anchor = {name: p.detach().clone() for name, p in trained.items()}
        if step <= self.first:
            return
        for name, parameter in trained.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - self.anchor[name], alpha=self.settings.rho)

    def state(self) -> Mapping[str, Tensor]:
        return self.anchor

    def restore(self, state: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]) -> None:
        self.anchor = {name: sharded_like(value, trained[name]) for name, value in state.items()}
