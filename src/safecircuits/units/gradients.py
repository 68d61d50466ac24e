"""One forward and one backward pass that reaches activations but no parameter: what all gradient scores share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from safecircuits.model.attach import HookFn
from safecircuits.model.forward import logits
from safecircuits.model.in_use import used_alone
from safecircuits.model.packed import require_gradients
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.batching import Batch


@contextmanager
def only_activations(model: HookedModel) -> Iterator[None]:
    """Inside the block gradients flow through the model but no parameter collects one.

    Raises:
        ValueError: for a quantised model whose maps pass on none.
    """
    require_gradients(model)
    with used_alone(model):
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def tracked(activation: Tensor) -> Tensor:
    """The activation, from here on part of the graph: the first one met has no history and starts it."""
    return activation if activation.requires_grad else activation.detach().requires_grad_()


def keep(into: dict[tuple[str, int], Tensor], key: tuple[str, int]) -> HookFn:
    """A hook that keeps an activation, in the graph, under ``key``."""

    def run(activation: Tensor) -> Tensor:
        into[key] = tracked(activation)
        return into[key]

    return run


def response_losses(model: HookedModel, batch: Batch) -> Float[Tensor, " batch"]:
    """Cross-entropy of each row's response, in nats, mean over its tokens: the loss of Wei et al., one row a prompt."""
    predicted = logits(model, batch)[:, :-1].float()
    targets = batch.is_response[:, 1:].to(predicted.device)
    labels = batch.input_ids[:, 1:].to(predicted.device)
    losses = torch.zeros_like(targets, dtype=predicted.dtype)
    losses[targets] = F.cross_entropy(predicted[targets], labels[targets], reduction="none")
    return losses.sum(1) / targets.sum(1)
