"""What repairs of chosen units by the model before alignment have in common: their fields and what these must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from safecircuits.baselines.earlier import earlier_model
from safecircuits.baselines.repair import Repair
from safecircuits.baselines.unit_entries import require_units_of
from safecircuits.masks.freeze_mask import FreezeMask


@dataclass(frozen=True)
class UnitRepair(Repair):
    """A repair of the entries of ``units``, for which the model before alignment is needed; ``why`` says what for."""

    units: FreezeMask
    unaligned: Any

    why: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_units_of(self.units, "units")
        object.__setattr__(self, "unaligned", earlier_model(self.unaligned, "unaligned", self.why))
