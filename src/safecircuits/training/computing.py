"""How a model computes while it trains: without dropout and, to save memory, computing its layers twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from safecircuits.model.modules import decoder_layers


@contextmanager
def gradient_checkpointing(model: Any) -> Iterator[None]:
    """Gradient checkpointing inside: of a layer only its input is kept, and the rest is computed again for backward.

    Transformers' own works in training mode alone, and there dropout would be on.
    """
    layers = decoder_layers(model)
    attributes = [layer.__dict__ for layer in layers]  # a bridge hands attributes on to what it wraps
    before = [own.get("forward") for own in attributes]
    for layer, own in zip(layers, attributes, strict=True):
        own["forward"] = _checkpointed(layer.forward)
    try:
        yield
    finally:
        for own, forward in zip(attributes, before, strict=True):
            if forward is None:
                del own["forward"]
            else:
                own["forward"] = forward


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return wrapped
