"""The training loss of a batch, the same for a hooked and for a plain Hugging Face model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from safecircuits.batching import Batch, position_ids
from safecircuits.forward import logits as hooked_logits
from safecircuits.parameters import is_plain

LossOn = Literal["response", "all"]
"""Which tokens are targets: the response with its end of sequence, or every token but a row's first."""


def token_loss(model: Any, batch: Batch, loss_on: LossOn = "response") -> tuple[Float[Tensor, ""], int]:
    """Cross-entropy summed over the target tokens of a batch, in nats, and how many targets there are."""
    targets: Bool[Tensor, "batch pos"] = batch.is_response[:, 1:]
    if loss_on == "all":
        targets = (batch.attention_mask[:, 1:] & batch.attention_mask[:, :-1]).bool()
    predicted = logits(model, batch)[:, :-1]
    targets = targets.to(predicted.device)
    wanted, labels = predicted[targets], batch.input_ids[:, 1:].to(predicted.device)[targets]
    if wanted.dtype in (torch.bfloat16, torch.float16):
        wanted = wanted.float()
    return F.cross_entropy(wanted, labels, reduction="sum"), len(labels)


def logits(model: Any, batch: Batch) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits at every position, of a hooked or a plain Hugging Face model."""
    if not is_plain(model):
        return hooked_logits(model, batch)
    batch = batch.to(next(model.parameters()).device)
    positions = position_ids(batch.attention_mask)
    out: Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=positions,
        use_cache=False,
    ).logits
    return out
