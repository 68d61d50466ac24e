"""How a model computes while it trains: without dropout and, to save memory, computing its layers twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from safecircuits.model.parameters import is_plain


@contextmanager
def gradient_checkpointing(model: Any) -> Iterator[None]:
    """Gradient checkpointing inside: of a layer only its input is kept, and the rest is computed again for backward.

    Transformers' own works in training mode alone, and there dropout would be on.
    """
    layers = [layer.__dict__ for layer in decoder_layers(model)]  # a bridge hands attributes on to what it wraps
    before = [own.get("forward") for own in layers]
    for layer, own in zip(decoder_layers(model), layers, strict=True):
        own["forward"] = _checkpointed(layer.forward)
    try:
        yield
    finally:
        for own, forward in zip(layers, before, strict=True):
            if forward is None:
                del own["forward"]
            else:
                own["forward"] = forward


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of a plain Hugging Face model, or those that a hooked model computes with.

    Raises:
        ValueError: if it has none that can be told.
    """
    if not is_plain(model):
        return list(model.blocks)
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"the layers of a {type(model).__name__} cannot be told: transformers does not mark them")
    return layers


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return wrapped
