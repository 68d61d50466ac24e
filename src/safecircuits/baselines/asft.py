"""AsFT: updates that leave the directions of alignment are penalised in training (Yang et al. 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from safecircuits.baselines.earlier import Matrices, earlier_model, matrices_of, read, same_view
from safecircuits.baselines.gradients import OF_ITS_OWN
from safecircuits.baselines.safe_lora import Projection, alignment_directions, project_update, require_projection
from safecircuits.hooks.linear_maps import Matrix
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun


@register("asft")
@dataclass(frozen=True)
class AsFt(Method):
    """What an update has beside the directions of alignment is penalised (Yang et al. 2026): + λ Σ ‖(I − C) ΔW‖².

    C is SafeLoRA's, of what alignment changed in each matrix of the layers. Penalty, C and defaults are those of the
    authors' published code, which trains adapters: there ΔW is their product.

    Attributes:
        unaligned: the model before alignment: its name or folder, or the model.
        strength: λ; 0 is plain training to the bit.
        projection: as in ``SafeLora``; ``"exact"`` leaves no penalty on what lies in the directions of alignment.

    Raises:
        ValueError: without the unaligned model, for one of another shape, or if no matrix differs from its.

    Examples:
        >>> sc.baselines.AsFt("unaligned", strength=0.1).projection
        'approximate'
    """

    unaligned: Any
    strength: float = 1.0
    projection: Projection = "approximate"

    refuses: ClassVar[Mapping[str, str]] = {"freeze": "it penalises whole matrices", "shard": OF_ITS_OWN}
    badge: ClassVar[Badge] = "variant"
    paper: ClassVar[str] = "Yang et al. 2026 (AsFT, AAAI), the regularised objective"
    differs: ClassVar[str] = "all weights train, not adapters"

    def __post_init__(self) -> None:
        super().__post_init__()
        why = "updates are held to what alignment changed, aligned minus unaligned weights"
        object.__setattr__(self, "unaligned", earlier_model(self.unaligned, "unaligned", why))
        require_projection(self.projection)
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength}, expected 0 or more: it weighs a penalty")

    def train(self, job: TrainingJob) -> FinetuneRun:
        matrices = matrices_of(job.model)
        start = read(matrices)
        directions = alignment_directions(start, self.unaligned, job.model)
        penalty = Anchored({key: matrices[key] for key in directions}, start, directions, self)
        return train_weights(replace(job, on_gradients=penalty))


class Anchored:
    """Adds 2 λ (I − C)² ΔW to the gradients of each matrix; C is symmetric."""

    def __init__(self, matrices: dict[str, Matrix], start: Matrices, directions: Matrices, method: AsFt) -> None:
        self.matrices, self.start, self.directions, self.method = matrices, start, directions, method

    @torch.no_grad()
    def __call__(self, _step: int, trained: Mapping[str, nn.Parameter]) -> None:
        if not self.method.strength:
            return
        gradients = {id(p): p.grad for p in trained.values() if p.grad is not None}
        for key, matrix in self.matrices.items():
            gradient = gradients.get(id(matrix.owner))
            if gradient is not None:
                there = same_view(matrix, gradient)
                beside = self._beside(key, self._beside(key, matrix.read() - self.start[key]))
                there.write(there.read() + 2 * self.method.strength * beside)

    def _beside(self, key: str, update: Tensor) -> Tensor:
        return update - project_update(update, self.directions[key], self.method.projection)
