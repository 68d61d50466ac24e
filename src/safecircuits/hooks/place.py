"""Which place in its own prompt each token of a running pass has, for hooks that do not treat all places alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from safecircuits.model.attach import marked
from safecircuits.model.sites import HookedModel, is_bridge
from safecircuits.prompts.batching import position_ids


class Places:
    """The places of the pass that is running; every hook of it may ask."""

    def __init__(self) -> None:
        self.now: Int[Tensor, "batch pos"] | None = None

    def of(self, activation: Tensor) -> Int[Tensor, "batch pos"]:
        """``[batch pos]``, counted from 0 at the first token that is no padding; padding has 0.

        Raises:
            RuntimeError: in a pass that does not tell, such as one of text that the model tokenizes itself.
        """
        if self.now is None or self.now.shape[1] != activation.shape[1] or len(self.now) not in (1, len(activation)):
            raise RuntimeError(
                "sparing the beginning takes knowing each token's place, which this pass does not tell: run the model "
                "by generate, evaluate and the like, or call it with token ids and their attention mask"
            )
        return self.now.to(activation.device)


@contextmanager
def placed(model: HookedModel) -> Iterator[Places]:
    """Inside the block the places of every pass are known while it runs."""
    bridge = is_bridge(model)
    module: Any = getattr(model, "original_model", model)
    places = Places()

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        places.now = (_hugging_faces if bridge else _transformer_lens)(args, kwargs)

    def end(*_: Any) -> None:
        places.now = None

    handles = [
        module.register_forward_pre_hook(marked(begin, "per_token"), with_kwargs=True),
        module.register_forward_hook(marked(end, "per_token"), always_call=True),
    ]
    try:
        yield places
    finally:
        for handle in handles:
            handle.remove()


def _hugging_faces(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    tokens = args[0] if args else kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs.get("inputs_embeds")
    if not isinstance(tokens, Tensor):
        return None
    given, mask, cache = (kwargs.get(name) for name in ("position_ids", "attention_mask", "past_key_values"))
    if isinstance(given, Tensor):
        return given
    new = tokens.shape[1]
    if isinstance(mask, Tensor):
        return position_ids(mask)[:, -new:] if mask.ndim == 2 else None
    past = 0 if cache is None else int(cache.get_seq_length())
    return torch.arange(past, past + new, device=tokens.device)[None]


def _transformer_lens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    tokens = args[0] if args else kwargs.get("input")
    if not isinstance(tokens, Tensor):
        return None  # text, or token ids in a list
    ids = tokens if tokens.ndim > 1 else tokens[None]
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_kv_cache")
    new = torch.ones(ids.shape[:2], dtype=torch.long, device=ids.device) if mask is None else mask
    before = None if cache is None else cache.previous_attention_mask
    return position_ids(new if before is None else torch.cat([before.to(new), new], dim=1))[:, -ids.shape[1] :]
