"""Callbacks that end a run: what they return, and what is kept of the weights to go back to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from safecircuits.training.sharding import sharded_like, whole


@dataclass(frozen=True)
class Halt:
    """What a callback of ``finetune`` returns to end training after this step.

    Attributes:
        reason: in words, for the record of the run.
        figures: what it would have returned otherwise.
        rewind: put the weights back to what they were when a callback last had nothing to say against them, or to the
            start. The callback must have an attribute ``rewinds`` that is true, since copies are kept for it.

    Examples:
        >>> def enough(model, step):
        ...     return sc.training.Halt("that is enough") if step == 2 else {"seen": step}
        >>> tuned = sc.load_model("aligned")
        >>> run = sc.finetune(tuned, utility, steps=4, batch_size=2, callbacks=[enough], eval_every=1, progress=False)
        >>> run.steps, run.halted["reason"]
        (2, 'that is enough')
    """

    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    rewind: bool = False


def keeps_good(callbacks: Iterable[Any]) -> bool:
    """Whether one of the callbacks may ask for earlier weights."""
    return any(getattr(callback, "rewinds", False) for callback in callbacks)


def may_halt(callbacks: Sequence[Any]) -> Any:
    """A callback that is there to end the run, or None."""
    return next((one for one in callbacks if getattr(one, "halts", False)), None)


class Good:
    """What training has made, as it was when nothing spoke against it: the weights, and what a method remembers.

    Attributes:
        step: after which; None before any were taken.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self._weights: dict[str, Tensor] = {}
        self._remembered: dict[str, Tensor] = {}

    def take(self, step: int, trained: Mapping[str, nn.Parameter], hook: Any) -> None:
        """Copy it, to the CPU; every process must call this."""
        self.step = step
        self._weights = _copied(trained)
        self._remembered = _copied(hook.state()) if hasattr(hook, "state") else {}

    @torch.no_grad()
    def put_back(self, trained: Mapping[str, nn.Parameter], hook: Any) -> None:
        """Give it to the parameters and to the method again."""
        for name, parameter in trained.items():
            parameter.copy_(sharded_like(self._weights[name].to(parameter.device), parameter))
        if hasattr(hook, "state"):
            hook.restore({name: value.clone() for name, value in self._remembered.items()}, trained)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; the step is kept beside it."""
        kept = {_WEIGHTS: self._weights, _REMEMBERED: self._remembered}
        return {f"{of}{name}": value for of, values in kept.items() for name, value in values.items()}

    def restore(self, step: int | None, remembered: dict[str, Tensor]) -> None:
        """Take its own part out of what a checkpoint remembers."""
        self.step = step
        self._weights, self._remembered = (_taken(remembered, of) for of in (_WEIGHTS, _REMEMBERED))


_WEIGHTS, _REMEMBERED = "good weights: ", "good memory: "


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor.detach()).cpu().clone() for name, tensor in tensors.items()}


def _taken(remembered: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in remembered if name.startswith(prefix)]
    return {name.removeprefix(prefix): remembered.pop(name) for name in names}
