"""RESTA: what alignment did to the weights is added once more after fine-tuning (Bhardwaj et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from safecircuits.baselines.earlier import earlier_model, values_of
from safecircuits.baselines.repair import Edit, Repair
from safecircuits.model.parameters import live_parameters
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import Plain


@register("resta")
@dataclass(frozen=True)
class Resta(Repair):
    """A safety vector, aligned minus unaligned weights, is added after training (Bhardwaj et al. 2024): θ + γ δ.

    Task arithmetic (Ilharco et al. 2023) with the vector of alignment; the aligned model is the one that is trained.

    Attributes:
        unaligned: the model before alignment: its name or folder, or the model.
        scale: γ; 0 leaves the trained model to the bit. Where training had undone alignment and nothing else, 1 is the
            aligned model again.
        drop: the share of what training changed that is dropped at random, the rest scaled up to make up for it (their
            RESTA with DARE, Yu et al. 2024).
        training: how it trains before.

    Raises:
        ValueError: without the unaligned model, or for one of another shape.

    Examples:
        >>> sc.baselines.Resta("unaligned", scale=0.3).scale
        0.3
    """

    unaligned: Any
    scale: float = 0.5
    drop: float = 0.0
    training: Method = field(default_factory=Plain)

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Bhardwaj et al. 2024, equations 1 to 3; Ilharco et al. 2023"

    def __post_init__(self) -> None:
        super().__post_init__()
        why = "the safety vector is what alignment changed, aligned minus unaligned weights"
        object.__setattr__(self, "unaligned", earlier_model(self.unaligned, "unaligned", why))
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is a share from 0 to below 1, not {self.drop}")

    def edit(self, job: TrainingJob) -> Edit:
        live = live_parameters(job.model)
        start = {name: parameter.detach().clone() for name, parameter in live.items()}
        unaligned = values_of(self.unaligned.loaded(job.model), job.model)
        vector = {name: start[name] - unaligned[name] for name in live}

        def add() -> None:
            generator = torch.Generator().manual_seed(job.seed)
            for name, parameter in live.items():
                if self.drop:
                    kept = torch.rand(parameter.shape, generator=generator).to(parameter.device) >= self.drop
                    change = (parameter - start[name]) * kept / (1 - self.drop)
                    parameter.copy_(start[name] + change)
                if self.scale:
                    parameter.add_(vector[name], alpha=self.scale)

        return add
