"""A run in phases, each with a mask of its own. SSAH §4.2 first freezes SCU and all CU, then SCU and the top CU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safecircuits.base.arguments import whole
from safecircuits.masks.freeze_mask import FreezeMask, require_mask
from safecircuits.training.freeze import Places


@dataclass(frozen=True)
class Phase:
    """What is frozen for how long: optimizer steps or passes over the data, one pass if neither is given.

    Examples:
        >>> mask = sc.FreezeMask.layers((3, 5))
        >>> phases = [sc.Phase(mask, steps=2), sc.Phase(None, steps=1)]
        >>> run = sc.finetune(sc.load_model("aligned"), utility, freeze=phases, batch_size=4, progress=False)
        >>> run.steps
        3
    """

    mask: FreezeMask | None
    epochs: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            require_mask(self.mask, "the frozen units of a phase")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"give a phase steps or epochs, not both (steps={self.steps}, epochs={self.epochs})")
        for name, value in (("epochs", self.epochs), ("steps", self.steps)):
            if value is not None:
                object.__setattr__(self, name, whole(value, f"{name} of a phase", 1))


Freeze = FreezeMask | Sequence[Phase] | None
"""One mask for the whole run, or phases one after the other."""


@dataclass(frozen=True)
class PhaseSteps:
    """A phase in a run: what is frozen, and where it lies, in the steps from ``start`` (of 0) until before ``stop``."""

    mask: FreezeMask | None
    start: int
    stop: int
    places: Places | None = None


def phase_steps(freeze: Freeze, steps: int | None, epochs: int | None, steps_per_epoch: int) -> list[PhaseSteps]:
    """The phases of a run, counted in steps.

    Raises:
        ValueError: if there is no phase, or the run's length is given beside that of its phases.
    """
    odd = [part for part in freeze if not isinstance(part, Phase)] if isinstance(freeze, list | tuple) else [freeze]
    if odd and not isinstance(freeze, FreezeMask | None):
        raise ValueError(
            "freeze is a mask, such as FreezeMask.layers((3, 5)), or a list of phases, [Phase(mask, epochs=1)], not a "
            f"{type(freeze).__name__}"
        )
    if freeze is None or isinstance(freeze, FreezeMask):
        phases = [Phase(freeze, epochs, steps)]
    elif steps is not None or epochs is not None:
        raise ValueError("phases have steps or epochs of their own: leave out those of the run")
    else:
        phases = list(freeze)
    if not phases:
        raise ValueError("freeze is an empty sequence: give a FreezeMask, None, or at least one Phase")
    found: list[PhaseSteps] = []
    for phase in phases:
        start = found[-1].stop if found else 0
        length = phase.steps if phase.steps is not None else (phase.epochs or 1) * steps_per_epoch
        found.append(PhaseSteps(phase.mask, start, start + length))
    return found


def frozen_throughout(plan: Sequence[PhaseSteps]) -> FreezeMask | None:
    """What no phase trains; None if that is nothing."""
    kept = plan[0].mask
    for phase in plan[1:]:
        kept = None if kept is None or phase.mask is None else kept & phase.mask
    return kept or None
