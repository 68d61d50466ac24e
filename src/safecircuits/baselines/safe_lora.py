"""SafeLoRA: what training changed is projected onto what alignment changed, once (Hsu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.baselines.earlier import EarlierModel, Matrices, earlier_model, matrices_of, read
from safecircuits.baselines.lora import Lora
from safecircuits.baselines.repair import Edit, Repair
from safecircuits.training.method import Badge, Method, TrainingJob, register

Projection = Literal["approximate", "exact"]
"""``V Vᵀ / ‖V‖``, which the paper takes for its speed, or the orthogonal projector ``V (Vᵀ V)⁺ Vᵀ`` that it
stands for."""
WHY = "updates are projected onto what alignment changed, aligned minus unaligned weights"
_RANK = 1e-5
"""Singular values below this share of the largest are rounding."""


@register("safe-lora")
@dataclass(frozen=True)
class SafeLora(Repair):
    """Updates that go another way than alignment went are projected onto its directions (Hsu et al. 2024): ΔW ← C ΔW.

    With V = W_aligned − W_unaligned of a matrix, C = V Vᵀ / ‖V‖. Projecting LoRA's B, as the paper does, is projecting
    the product B A, so that other training can be repaired as well. Each matrix is projected once. The aligned model is
    the one that is trained.

    Attributes:
        unaligned: the model before alignment: its name or folder, or the model.
        threshold: a matrix is projected if the cosine of ΔW and C ΔW is at most this; 1 projects all of them.
        projection: ``"exact"`` is idempotent, and the identity wherever V has full rank.
        training: how it trains before.

    Raises:
        ValueError: without the unaligned model, for one of another shape, or if no matrix differs from its.

    Examples:
        >>> method = sc.baselines.SafeLora("unaligned", threshold=0.35)
        >>> method.training.name
        'lora'
    """

    unaligned: Any
    threshold: float = 0.5
    projection: Projection = "approximate"
    training: Method = field(default_factory=Lora)

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Hsu et al. 2024, equations 1 to 3"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "unaligned", earlier_model(self.unaligned, "unaligned", WHY))
        require_projection(self.projection)
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is a cosine between -1 and 1, not {self.threshold}")

    def edit(self, job: TrainingJob) -> Edit:
        matrices = matrices_of(job.model)
        start = read(matrices)
        directions = alignment_directions(start, self.unaligned, job.model)

        def project() -> None:
            for key, direction in directions.items():
                update = matrices[key].read() - start[key]
                projected = project_update(update, direction, self.projection)
                if update.any() and cosine(update, projected) <= self.threshold:
                    matrices[key].write(start[key] + projected)

        return project


def require_projection(projection: str) -> None:
    """A ValueError for a projection that there is not."""
    if projection not in ("approximate", "exact"):
        raise ValueError(f"projection is 'approximate' or 'exact', not {projection!r}")


def alignment_directions(aligned: Matrices, unaligned: EarlierModel, model: Any) -> Matrices:
    """What alignment changed, of each matrix in which it changed anything.

    Raises:
        ValueError: if that is none.
    """
    before = read(matrices_of(unaligned.loaded(model)))
    found = {key: value - before[key] for key, value in aligned.items()}
    found = {key: change for key, change in found.items() if change.any()}
    if not found:
        raise ValueError(f"{unaligned!r} has the matrices of the model that trains: alignment changed nothing")
    return found


def project_update(
    update: Float[Tensor, "out in"], direction: Float[Tensor, "out in"], how: Projection = "approximate"
) -> Float[Tensor, "out in"]:
    """An update of a matrix, projected onto the column space of ``direction``."""
    wide = direction.double() if how == "exact" else direction.float()
    projected: Tensor
    if how == "approximate":
        projected = wide @ (wide.T @ update.to(wide)) / torch.linalg.matrix_norm(wide)
    else:
        left, sizes, _ = torch.linalg.svd(wide, full_matrices=False)
        left = left[:, sizes > _RANK * sizes[0]]
        projected = left @ (left.T @ update.to(wide))
    return projected.to(update.dtype)


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two matrices as vectors."""
    return float(torch.nn.functional.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))
