"""Units that fine-tuning has led astray are taken from a reference that is safer than the aligned model: as in NLSR."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from safecircuits.baselines.earlier import matrices_of, read
from safecircuits.baselines.repair import Edit
from safecircuits.baselines.safe_lora import cosine
from safecircuits.baselines.unit_entries import entries_in_matrices
from safecircuits.baselines.unit_repair import UnitRepair
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import Plain


@register("nlsr")
@dataclass(frozen=True)
class Nlsr(UnitRepair):
    """Units whose way from the unaligned model has turned are taken from an amplified reference (after Yi et al. 2025).

    The reference is extrapolated, R = A + β (A − U) of aligned and unaligned weights. In each matrix the units' entries
    of T − U (trained) and R − U are compared; where their cosine is at most ``threshold``, they become R's.

    Attributes:
        units: whose entries may be put back, such as ``groups["SCU"]``.
        unaligned: the model before alignment: its name or folder, or the model.
        beta: how far beyond the aligned model the reference lies, 0.8 in the authors' script; 0, with ``threshold`` 1,
            rewinds them.
        threshold: the cosine up to which a matrix is taken to be broken.
        training: how it trains before.

    Raises:
        ValueError: for units that are none, without the unaligned model, or for one of another shape.

    Examples:
        >>> sc.baselines.Nlsr(sc.FreezeMask.layers((3, 5)), "unaligned", beta=0.5).beta
        0.5
    """

    beta: float = 0.8
    threshold: float = 0.9
    training: Method = field(default_factory=Plain)

    why: ClassVar[str] = "the reference lies beyond the aligned model, away from the unaligned one"
    badge: ClassVar[Badge] = "variant"
    paper: ClassVar[str] = "Yi et al. 2025 (NLSR, AAAI), extrapolated reference and transplantation"
    differs: ClassVar[str] = (
        "units are given and not found by low-rank scores; a threshold where theirs draws matrices by rank of cosine"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is a cosine between -1 and 1, not {self.threshold}")

    def edit(self, job: TrainingJob) -> Edit:
        matrices = matrices_of(job.model)
        aligned = read(matrices)
        unaligned = read(matrices_of(self.unaligned.loaded(job.model)))
        chosen = entries_in_matrices(job.model, self.units)

        def transplant() -> None:
            for key, where in chosen.items():
                now, before = matrices[key].read(), unaligned[key]
                reference = aligned[key] + self.beta * (aligned[key] - before)
                way, wanted = (now - before)[where], (reference - before)[where]
                if cosine(way, wanted) <= self.threshold:
                    matrices[key].write(torch.where(where, reference, now))

        return transplant
