"""A moving average of the weights along training: what is handed out has moved less than what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn
from typing_extensions import override

from safecircuits.baselines.repair import Edit, Repair
from safecircuits.model.parameters import live_parameters
from safecircuits.training.method import Badge, Method, OnGradients, TrainingJob, register
from safecircuits.training.plain import Plain


@register("ema")
@dataclass(frozen=True)
class Ema(Repair):
    """The weights are an exponential moving average over the steps (Kim et al. 2025): θ̄ ← η θ̄ + (1 − η) θ, from θ₀.

    Attributes:
        decay: η, what a step leaves of the average; 0 is plain training to the bit.

    Examples:
        >>> sc.baselines.Ema(decay=0.99).record()
        {'name': 'ema', 'decay': 0.99}
    """

    decay: float = 0.9

    training: ClassVar[Method] = Plain()  # type: ignore[misc]  # adapters' average is not that of their product
    refuses: ClassVar[Mapping[str, str]] = {**Repair.refuses, "shard": "it averages whole weights"}
    badge: ClassVar[Badge] = "variant"
    paper: ClassVar[str] = "Kim et al. 2025 (arXiv 2508.12531), Polyak averaging"
    differs: ClassVar[str] = "the average is handed out and is not fed back into the steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is what a step leaves of the average, from 0 to below 1, not {self.decay}")

    def edit(self, job: TrainingJob) -> Edit:
        return Average(live_parameters(job.model), self.decay).put

    @override
    def follower(self, edit: Edit, job: TrainingJob) -> OnGradients:
        average: Average = edit.__self__  # type: ignore[attr-defined]  # whose method it is
        return average


class Average:
    """The average over the steps so far; it is told of a step when the next one has its gradients."""

    def __init__(self, live: Mapping[str, nn.Parameter], decay: float) -> None:
        self.live = live
        self.next = get_ema_avg_fn(decay)
        self.mean = {name: parameter.detach().clone() for name, parameter in live.items()}

    def put(self) -> None:
        """Give the model the average, the weights of the moment included."""
        for name, parameter in self.live.items():
            parameter.copy_(self._then(name))

    @torch.no_grad()
    def __call__(self, step: int, _trained: Mapping[str, nn.Parameter]) -> None:
        if step:  # before the first one the weights are those that the average begins with
            self.mean = {name: self._then(name) for name in self.live}

    def _then(self, name: str) -> Tensor:
        mean: Tensor = self.next(self.mean[name], self.live[name].detach(), 1)
        return mean

    def state(self) -> Mapping[str, Tensor]:
        return self.mean

    def restore(self, state: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]) -> None:  # noqa: ARG002
        self.mean = {name: value.to(self.live[name]) for name, value in state.items()}
