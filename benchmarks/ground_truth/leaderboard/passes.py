"""What a method costs in passes: tokens that go through decoder layers, forward and backward, whoever sends them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from safecircuits.model.sites import HookedModel, is_bridge

T = TypeVar("T")


@dataclass
class Passes:
    """Tokens × layers so far; ``passes`` makes them passes of one prompt through one whole model."""

    n_layers: int
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    """Processor seconds of what was computed before, for another method, and is charged to this one too."""

    def passes(self, prompt_tokens: float) -> tuple[float, float]:
        """Forward and backward, each the number of times that a prompt of so many tokens would make as many."""
        return self.forward / self.n_layers / prompt_tokens, self.backward / self.n_layers / prompt_tokens


class Shared:
    """What several methods of one model need, computed once and charged in full to each of them.

    Args:
        model: gives the model whose layers are counted, when it is first needed.
    """

    def __init__(self, model: Callable[[], HookedModel]) -> None:
        self._model = model
        self._kept: dict[Hashable, tuple[Any, Passes]] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, or gave under this key."""
        if key not in self._kept:
            start = time.process_time()
            with counted(self._model()) as cost:  # whoever else counts sees the passes themselves
                value = make()
            cost.seconds += time.process_time() - start
            self._kept[key] = value, cost
            return value
        value, cost = self._kept[key]
        for count in _counting:
            count.forward, count.backward = count.forward + cost.forward, count.backward + cost.backward
            count.seconds += cost.seconds
        found: T = value
        return found


_counting: list[Passes] = []
"""Those in force, the innermost last."""


@contextmanager
def counted(model: HookedModel) -> Iterator[Passes]:
    """Count inside the block what goes through layers of this model's kind, of the base beside it, too.

    The hook is torch's for all modules, which no analysis takes for a hook on its model.
    """
    layer = model.blocks[0].original_component if is_bridge(model) else model.blocks[0]
    kind, count = type(layer), Passes(int(model.cfg.n_layers))

    def after(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
        if type(module) is not kind:
            return
        out: Tensor = output[0] if isinstance(output, tuple) else output
        tokens = out.shape[0] * out.shape[1]
        count.forward += tokens
        if torch.is_grad_enabled() and out.requires_grad:

            def back(_: Tensor) -> None:
                count.backward += tokens

            out.register_hook(back)

    handle = nn.modules.module.register_module_forward_hook(after)
    _counting.append(count)
    try:
        yield count
    finally:
        _counting.pop()
        handle.remove()
