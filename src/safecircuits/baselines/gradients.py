"""Gradients of a loss of a method's own, beside the ones that the loop takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import Encoded
from safecircuits.training.loss import token_loss

OF_ITS_OWN = "it takes gradients of its own, of whole tensors"
"""Why it refuses to be sharded."""


def mean_loss_gradients(
    model: Any, examples: Sequence[Encoded], trained: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Gradients of the mean cross-entropy over the response tokens, to what trains; zero where nothing depends."""
    loss, count = token_loss(model, pad_left(examples))
    found = torch.autograd.grad(loss / count, list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(trained.items(), found, strict=True)
    }
