"""The training loss of a batch, the same for a hooked and for a plain Hugging Face model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from safecircuits.batching import Batch, position_ids
from safecircuits.forward import logits as hooked_logits
from safecircuits.forward import require_known
from safecircuits.parameters import is_plain
from safecircuits.sites import is_bridge
from safecircuits.training.packing import PackedBatch

LossOn = Literal["response", "all"]
"""Which tokens are targets: the response with its end of sequence, or every token but an example's first."""
Precision = Literal["no", "bf16"]
"""What the forward pass computes in: the dtype of the weights, or bfloat16 where autocast finds it safe."""


class TrainingLoss(nn.Module):
    """A model with its loss as one module: what computes, recomputes, is copied or sharded over processes."""

    def __init__(self, model: Any, loss_on: LossOn, precision: Precision) -> None:
        super().__init__()
        self.computes = getattr(model, "original_model", model)  # a bridge is a second view of what it wraps
        self.loss_on, self.precision = loss_on, precision
        self._models = [model]

    def forward(self, batch: Batch | PackedBatch) -> Float[Tensor, ""]:
        """Cross-entropy summed over the target tokens of a batch, in nats."""
        device = next(self.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            return token_loss(self._models[0], batch, self.loss_on)[0]


def token_loss(model: Any, batch: Batch | PackedBatch, loss_on: LossOn = "response") -> tuple[Float[Tensor, ""], int]:
    """Cross-entropy summed over the target tokens of a batch, in nats, and how many targets there are."""
    targets: Bool[Tensor, "batch pos"] = batch.is_response[:, 1:]
    if loss_on == "all":
        targets = _positions(batch)[:, 1:] > 0
    predicted = logits(model, batch)[:, :-1]
    targets = targets.to(predicted.device)
    wanted, labels = predicted[targets], batch.input_ids[:, 1:].to(predicted.device)[targets]
    if wanted.dtype in (torch.bfloat16, torch.float16):
        wanted = wanted.float()
    return F.cross_entropy(wanted, labels, reduction="sum"), len(labels)


def logits(model: Any, batch: Batch | PackedBatch) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits at every position, of a hooked or a plain Hugging Face model."""
    if not is_plain(model) and isinstance(batch, Batch):
        return hooked_logits(model, batch)
    if not is_plain(model) and not is_bridge(model):
        raise ValueError("a HookedTransformer cannot keep packed examples apart: use batches='length', or a bridge")
    require_known(model, batch.input_ids)
    batch = batch.to(next(model.parameters()).device)
    mask = None if isinstance(batch, PackedBatch) else batch.attention_mask
    out: Tensor = getattr(model, "original_model", model)(
        input_ids=batch.input_ids,
        attention_mask=mask,
        position_ids=_positions(batch),
        use_cache=False,
    ).logits
    return out


def _positions(batch: Batch | PackedBatch) -> Int[Tensor, "batch pos"]:
    """Within each example from 0; padding has 0."""
    return batch.position_ids if isinstance(batch, PackedBatch) else position_ids(batch.attention_mask)
