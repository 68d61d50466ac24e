"""Which examples a step sees, and which of them a process puts into which forward pass."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from safecircuits.base.notices import notify
from safecircuits.prompts.batching import Batch, pad_left
from safecircuits.prompts.prompt_set import Encoded
from safecircuits.training.packing import PackedBatch, pack
from safecircuits.training.settings import LossOn

T = TypeVar("T")

_WINDOW = 50
"""Steps' worth of examples that are sorted by length at a time, so that no example always has the same neighbours."""


class Order:
    """Which examples each step (from 0) sees: each of them once an epoch, a pure function of seed and step.

    Args:
        lengths: tokens of each example, for steps of examples of similar length.
    """

    def __init__(self, n: int, per_step: int, seed: int, lengths: Sequence[int] | None = None) -> None:
        self.n, self.per_step, self.seed, self.lengths = n, per_step, seed, lengths
        self.steps_per_epoch = math.ceil(n / per_step)
        self._epoch, self._steps = -1, list[list[int]]()

    def rows(self, step: int) -> list[int]:
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._steps = epoch, self._steps_of(epoch)
        return self._steps[within]

    def _steps_of(self, epoch: int) -> list[list[int]]:
        rows = random.Random(f"{self.seed} {epoch}").sample(range(self.n), self.n)
        if self.lengths is None:
            return _cut(rows, self.per_step)
        steps = [
            step
            for window in _cut(rows, _WINDOW * self.per_step)
            for step in _cut(sorted(window, key=self.lengths.__getitem__, reverse=True), self.per_step)
        ]
        return random.Random(f"{self.seed} {epoch} length").sample(steps, len(steps))


@dataclass(frozen=True)
class Share:
    """One forward pass of one process; of weight 0 where it only keeps step with the other processes."""

    batch: Batch | PackedBatch
    weight: float = 1.0


def shares(examples: Sequence[Encoded], batch_size: int, rank: int, size: int, packed: bool) -> list[Share]:
    """The forward passes of process ``rank`` of ``size`` in a step with ``examples``; equally many on every process."""
    each = math.ceil(len(examples) / size)
    mine = examples[rank * each : (rank + 1) * each]
    collate: Callable[[Sequence[Encoded]], Batch | PackedBatch] = pack if packed else pad_left
    passes = [Share(collate(part)) for part in _cut(mine, batch_size)]
    idle = math.ceil(each / batch_size) - len(passes)
    return passes + [Share(collate(examples[:1]), weight=0.0)] * idle


def truncate(examples: Sequence[Encoded], max_length: int | None, loss_on: LossOn) -> tuple[list[Encoded], int]:
    """The examples, none longer than ``max_length`` tokens, and how many had to be cut at their end.

    Raises:
        ValueError: if an example that trains by its response would have no token of that left.
    """
    if max_length is None:
        return list(examples), 0
    prompts = [example.response_start for example in examples] if loss_on != "all" else []
    silent = [i for i, length in enumerate(prompts) if length >= max_length]
    if silent:
        raise ValueError(
            f"max_length={max_length} leaves {len(silent)} of {len(examples)} examples without a response token to "
            f"train on, the first being example {silent[0]}, whose prompt has {examples[silent[0]].response_start} "
            "tokens: raise max_length or leave these examples out"
        )
    cut = sum(len(example) > max_length for example in examples)
    if cut:
        notify(f"{cut} of {len(examples)} examples were cut to max_length={max_length} tokens")
    return [replace(example, ids=example.ids[:max_length]) for example in examples], cut


def n_targets(example: Encoded, loss_on: LossOn) -> int:
    """How many tokens of an example the loss counts."""
    return len(example) - 1 if loss_on == "all" else sum(stop - start for start, stop in example.spans)


def _cut(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
