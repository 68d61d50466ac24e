"""What a method costs in passes: tokens that go through decoder layers, forward and backward, whoever sends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safecircuits.model.sites import HookedModel, is_bridge


@dataclass
class Passes:
    """Tokens × layers so far; ``passes`` makes them passes of one prompt through one whole model."""

    n_layers: int
    forward: int = 0
    backward: int = 0

    def passes(self, prompt_tokens: float) -> tuple[float, float]:
        """Forward and backward, each the number of times that a prompt of so many tokens would make as many."""
        return self.forward / self.n_layers / prompt_tokens, self.backward / self.n_layers / prompt_tokens


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
    try:
        yield count
    finally:
        handle.remove()
