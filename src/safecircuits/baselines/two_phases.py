"""The schedule of SSAH §4.2: another mask in a first epoch, as all CU beside the SCU, and then the run's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.phases import Phase
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun


@register("two-phases")
@dataclass(frozen=True)
class TwoPhases(Method):
    """Plain fine-tuning with another mask in the first epoch (SSAH §4.2).

    The run is as long as without phases, of two steps at the least. Other phases: ``finetune(freeze=[Phase(…), …])``.

    Attributes:
        first: what is frozen in the first epoch, in place of ``freeze``.

    Examples:
        >>> method = sc.baselines.TwoPhases(sc.FreezeMask.layers((0, 3)))
        >>> sc.studies.Arm("slow", "layers 0 to 3 at first", method=method).method.name
        'two-phases'
    """

    first: FreezeMask

    badge: ClassVar[Badge] = "option"
    paper: ClassVar[str] = "SSAH §4.2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.first, FreezeMask):
            raise ValueError(f"first is a FreezeMask of what is frozen in the first epoch, not {self.first!r}")

    def train(self, job: TrainingJob) -> FinetuneRun:
        if not isinstance(job.freeze, FreezeMask | None):
            raise ValueError("freeze is a list of phases already: give two-phases the mask of the second")
        steps = job.settings.steps_on(len(job.data))
        if steps < 2:
            raise ValueError("a run of one step has no two phases: train longer, or with method=Plain()")
        first = min(job.settings.changed(epochs=1).steps_on(len(job.data)), steps - 1)
        phases = [Phase(self.first, steps=first), Phase(job.freeze, steps=steps - first)]
        return train_weights(replace(job, freeze=phases, settings=replace(job.settings, steps=None, epochs=None)))
