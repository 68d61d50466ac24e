"""What repairs have in common: train by another method, and then move the weights.

Whoever looks at the model on the way, by a callback, sees it repaired, as it would be handed out if training ended
there; training itself goes on from the weights that it left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from safecircuits.model.fused import copies_of_fused, fuse_again
from safecircuits.model.parameters import live_parameters
from safecircuits.training.method import Callback, Method, OnGradients, TrainingJob
from safecircuits.training.run import FinetuneRun
from safecircuits.training.settings import TrainingSettings

Edit = Callable[[], None]
"""Moves the weights of the model that it was made for, in place."""


class Repair(Method):
    """A method that trains by ``training``, and edits the weights afterwards.

    A subclass is a frozen dataclass with a field ``training``, and ``edit``, which is called before training.
    """

    training: Method

    refuses: ClassVar[Mapping[str, str]] = {"freeze": "it moves weights after training, frozen ones too"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.training, Method):
            raise ValueError(f"training is the method that trains before the repair, not {self.training!r}")
        if self.training.trains_beside:
            raise ValueError(f"{self.training.name} leaves the weights as they are: there is nothing for {self.name}")

    def require(self, settings: TrainingSettings, **arguments: Any) -> None:
        super().require(settings, **arguments)
        self.training.require(settings, **(arguments | {"freeze": None}))

    def edit(self, job: TrainingJob) -> Edit:
        """What is done to the model, made while it is as training will find it."""
        raise NotImplementedError

    def follower(self, edit: Edit, job: TrainingJob) -> OnGradients | None:  # noqa: ARG002
        """What follows the steps, where the edit depends on how training went."""
        return job.on_gradients

    def train(self, job: TrainingJob) -> FinetuneRun:
        live = live_parameters(job.model)
        copies = bool(copies_of_fused(job.model))
        edit = self.edit(job)

        @torch.no_grad()
        def repair() -> None:
            edit()
            if copies:
                fuse_again(job.model)

        shown = [_shown(callback, repair, live) for callback in job.callbacks]
        run = self.training.train(replace(job, freeze=None, callbacks=shown, on_gradients=self.follower(edit, job)))
        repair()
        return run


def _shown(callback: Callback, repair: Callable[[], None], live: Mapping[str, Tensor]) -> Callback:
    """A callback that sees the repaired model; afterwards its weights are bit for bit what they were."""

    def call(model: Any, step: int) -> Any:
        kept = {name: parameter.detach().clone() for name, parameter in live.items()}
        try:
            repair()
            return callback(model, step)
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    live[name].copy_(value)
            fuse_again(model)

    return call
