"""One forward pass and one step of decoding, the same on a HookedTransformer and on a TransformerBridge."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.batching import Batch, position_ids
from safecircuits.sites import HookedModel, is_bridge


def device_of(model: HookedModel) -> torch.device:
    """Where the model takes its input ids."""
    return next(model.parameters()).device


def run(model: HookedModel, batch: Batch) -> None:
    """One forward pass for the sake of the hooks; only the last position's logits are computed where possible."""
    Decoder(model).step(batch.input_ids, batch.attention_mask)


def logits(model: HookedModel, batch: Batch) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits at every position; those at padding mean nothing."""
    batch = batch.to(device_of(model))
    if not is_bridge(model):
        out: Tensor = model(batch.input_ids, attention_mask=batch.attention_mask, return_type="logits")
        return out
    answer: Tensor = _wrapped(model)(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=position_ids(batch.attention_mask),
        use_cache=False,
    ).logits
    return answer


class Decoder:
    """Feeds tokens to a model step by step over a key/value cache.

    On a bridge the wrapped Hugging Face model is called itself: the hook points live inside it and fire all the same,
    and its cache and last-position head are the cheapest there are.
    """

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self.cache: Any = None
        self.mask: Int[Tensor, "batch pos"] | None = None

    def step(
        self, input_ids: Int[Tensor, "batch new"], attention_mask: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Feed ``new`` further positions of each row; the logits after the last of them."""
        device = device_of(self.model)
        input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
        seen = attention_mask if self.mask is None else torch.cat([self.mask, attention_mask], dim=1)
        out = (self._bridge_step if is_bridge(self.model) else self._hooked_step)(input_ids, attention_mask, seen)
        self.mask = seen
        return out

    def _bridge_step(self, input_ids: Tensor, new_mask: Tensor, seen: Tensor) -> Tensor:
        if self.cache is None:
            from transformers import DynamicCache

            self.cache = DynamicCache(config=_wrapped(self.model).config)
        out = _wrapped(self.model)(
            input_ids=input_ids,
            attention_mask=seen,
            position_ids=position_ids(seen)[:, -new_mask.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        last: Tensor = out.logits[:, -1]
        return last

    def _hooked_step(self, input_ids: Tensor, new_mask: Tensor, seen: Tensor) -> Tensor:  # noqa: ARG002
        if self.cache is None:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            cfg, batch = self.model.cfg, input_ids.shape[0]
            self.cache = TransformerLensKeyValueCache.init_cache(cfg, input_ids.device, batch)
        out: Tensor = self.model(input_ids, attention_mask=new_mask, past_kv_cache=self.cache, return_type="logits")
        return out[:, -1]


def _wrapped(model: Any) -> Any:
    return model.original_model
