"""Lisa, a baseline of Safety Layers' Table 3: fine-tuning in two states with a proximal term (Huang et al. 2024).

Training alternates between some steps on alignment data and some on the user's data. In each state the loss gains
ρ/2 · ‖w − w̃‖², where w̃ are the weights with which the other state ended, so that neither drifts far from the other.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safecircuits.base.arguments import checked, read_fields
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.training.loop import finetune
from safecircuits.training.run import FinetuneRun


@dataclass(frozen=True)
class LisaSettings:
    """The defaults are those of the authors' script for their main table.

    Attributes:
        rho: weight of the proximal term.
        alignment_steps, user_steps: optimizer steps in each state before it changes to the other; the first state is
            alignment.
        free_share: the share of all steps, from the first one, without the proximal term (their code's; the paper has
            none).
    """

    rho: float = 1.0
    alignment_steps: int = 100
    user_steps: int = 900
    free_share: float = 0.1

    def __post_init__(self) -> None:
        read_fields(self)
        if self.rho < 0:
            raise ValueError(f"rho is {self.rho}, expected 0 or more: it weighs a penalty")

    def scaled(self, steps: int, rounds: int = 2) -> LisaSettings:
        """The same proportions in a run of ``steps`` steps, so that it goes ``rounds`` times through both states."""
        length = max(2, steps // rounds)
        alignment = max(1, round(length * self.alignment_steps / (self.alignment_steps + self.user_steps)))
        return LisaSettings(self.rho, alignment, max(1, length - alignment), self.free_share)

    def require(self, steps: int) -> None:
        """A ValueError for a run that ends before it reaches the user's data."""
        if steps <= self.alignment_steps:
            raise ValueError(
                f"{steps} steps end within the first {self.alignment_steps} on alignment data: "
                f"train longer, or pass settings=LisaSettings().scaled({steps})"
            )

    def aligning(self, step: int) -> bool:
        """Whether a step (from 0) is on alignment data."""
        return step % (self.alignment_steps + self.user_steps) < self.alignment_steps


@checked
def lisa(
    model: Any,
    data: PromptSet,
    alignment: PromptSet,
    *,
    settings: LisaSettings | None = None,
    steps: int,
    **options: Any,
) -> FinetuneRun:
    """Fine-tune ``model`` in place on ``data`` and ``alignment`` in turn; needs twice the memory of what trains.

    Args:
        data: the user's prompts with responses, harmful ones among them or not.
        alignment: prompts with the answers of a safe model.
        steps: optimizer steps in both states together.
        options: as for ``finetune``, but for epochs, rows, on_gradients, stop_at_loss and checkpoints.

    Raises:
        ValueError: if the run is too short to reach the user's data, or for an option that this cannot serve.
    """
    settings = settings or LisaSettings()
    for name in ("epochs", "rows", "on_gradients", "stop_at_loss", "checkpoint_dir"):
        if options.get(name) is not None:
            raise ValueError(f"lisa does not take {name}: it has states of its own, counted in steps")
    settings.require(steps)
    per_step = options.get("batch_size", 16) * options.get("grad_accumulation", 1)
    states = _States(len(data), len(alignment), per_step, settings, options.get("seed", 0))
    proximal = _Proximal(settings, first=round(settings.free_share * steps))
    return finetune(model, data + alignment, steps=steps, rows=states.rows, on_gradients=proximal, **options)


class _States:
    """Which rows of the user's data, followed by the alignment data, each step sees."""

    def __init__(self, n_user: int, n_alignment: int, per_step: int, settings: LisaSettings, seed: int) -> None:
        self.n_user, self.n_alignment, self.per_step = n_user, n_alignment, per_step
        self.settings, self.seed = settings, seed

    def rows(self, step: int) -> list[int]:
        aligning = self.settings.aligning(step)
        start, n = (self.n_user, self.n_alignment) if aligning else (0, self.n_user)
        drawn = random.Random(f"{self.seed} {step} {'alignment' if aligning else 'user'}")
        return [start + i for i in drawn.sample(range(n), min(self.per_step, n))]


class _Proximal:
    """Adds ρ · (w − w̃) to the gradients, where w̃ are the weights at the last change of state."""

    def __init__(self, settings: LisaSettings, first: int) -> None:
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
