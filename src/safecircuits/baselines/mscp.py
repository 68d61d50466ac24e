"""The updates of chosen units alone, projected onto what alignment changed: as in MSCP (Han et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from safecircuits.baselines.earlier import matrices_of, read
from safecircuits.baselines.repair import Edit
from safecircuits.baselines.safe_lora import WHY, Projection, alignment_directions, project_update, require_projection
from safecircuits.baselines.unit_entries import entries_in_matrices
from safecircuits.baselines.unit_repair import UnitRepair
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import Plain


@register("mscp")
@dataclass(frozen=True)
class ProjectedUnits(UnitRepair):
    """Of the units' entries alone the update is projected onto what alignment changed (after Han et al. 2025).

    ΔW ← M ⊙ C ΔW + (1 − M) ⊙ ΔW, where M is 1 at the units' entries of a matrix and C is SafeLoRA's. No code of theirs
    was found, so this rests on what the paper's abstract says.

    Attributes:
        units: whose entries are projected, such as ``groups["SCU"]``.
        unaligned: the model before alignment: its name or folder, or the model.
        projection: as in ``SafeLora``.
        training: how it trains before.

    Raises:
        ValueError: for units that are none, without the unaligned model, or for one of another shape.

    Examples:
        >>> sc.baselines.ProjectedUnits(sc.FreezeMask.layers((3, 5)), "unaligned").name
        'mscp'
    """

    projection: Projection = "approximate"
    training: Method = field(default_factory=Plain)

    why: ClassVar[str] = WHY
    badge: ClassVar[Badge] = "variant"
    paper: ClassVar[str] = "Han et al. 2025 (arXiv 2508.09190), projection of safety neurons"
    differs: ClassVar[str] = "units are given and not found by their search; one projection, not one a safety dimension"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_projection(self.projection)

    def edit(self, job: TrainingJob) -> Edit:
        matrices = matrices_of(job.model)
        start = read(matrices)
        directions = alignment_directions(start, self.unaligned, job.model)
        chosen = entries_in_matrices(job.model, self.units)

        def project() -> None:
            for key in directions.keys() & chosen.keys():
                now = matrices[key].read()
                projected = start[key] + project_update(now - start[key], directions[key], self.projection)
                matrices[key].write(torch.where(chosen[key], projected, now))

        return project
