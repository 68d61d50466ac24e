"""The training loss of a batch, the same for a hooked and for a plain Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from safecircuits.model.forward import logits as hooked_logits
from safecircuits.model.forward import require_known
from safecircuits.model.parameters import is_plain
from safecircuits.model.sites import is_bridge
from safecircuits.prompts.batching import Batch, pad_left, position_ids
from safecircuits.prompts.prompt_set import Encoded
from safecircuits.training.method import Objective
from safecircuits.training.packing import PackedBatch, in_rows
from safecircuits.training.settings import LossOn, Precision


class TrainingLoss(nn.Module):
    """A model with its loss as one module: what computes, recomputes, is copied or sharded over processes."""

    def __init__(self, model: Any, loss_on: LossOn, precision: Precision, objective: Objective | None = None) -> None:
        super().__init__()
        self.computes = getattr(model, "original_model", model)  # a bridge is a second view of what it wraps
        self.loss_on, self.precision, self.objective = loss_on, precision, objective or cross_entropy
        self._models = [model]

    def forward(self, batch: Batch | PackedBatch) -> Float[Tensor, ""]:
        """The objective summed over the target tokens of a batch: cross-entropy in nats unless it is another."""
        device = next(self.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.objective(self._models[0], batch, self.loss_on)


def cross_entropy(model: Any, batch: Batch | PackedBatch, loss_on: LossOn) -> Float[Tensor, ""]:
    """Summed over the target tokens of a batch, in nats."""
    return token_loss(model, batch, loss_on)[0]


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


@torch.no_grad()
def require_separable(model: Any, examples: Sequence[Encoded]) -> None:
    """Raise a ValueError unless this model computes a packed example as it computes it alone.

    Two examples are packed into a row. Other tokens in the first must leave the logits of the second as they are, and
    those must be what the second has by itself.
    """
    second, first = sorted(examples, key=len)[:2] if len(examples) > 1 else (examples[0], examples[0])
    other = Encoded(tuple(token - 1 if token else 1 for token in first.ids), first.response_start)
    packed, changed = (
        _log_probs(logits(model, in_rows([[one, second]])), second, len(first)) for one in (first, other)
    )
    alone = _log_probs(logits(model, pad_left([second])), second, 0)
    exact = packed.dtype in (torch.float32, torch.float64)
    leaked, moved = float((packed - changed).abs().max()), float((packed - alone).abs().mean())
    if leaked > (1e-6 if exact else 1e-2) or moved > (1e-3 if exact else 0.1):
        raise ValueError(
            f"this {type(model).__name__} does not keep packed examples apart (another example in its row changes a "
            f"log-probability by {leaked:.2g}, packing itself by {moved:.2g}): use batches='length', which wastes "
            "little on padding either"
        )


def _log_probs(logits: Float[Tensor, "row pos d_vocab"], example: Encoded, start: int) -> Float[Tensor, " pos"]:
    """Of the tokens of an example that starts at ``start`` of the first row; in the dtype of the logits."""
    there = logits[0, start : start + len(example) - 1]
    chosen = torch.tensor(example.ids[1:], device=there.device)
    return -F.cross_entropy(there.float(), chosen, reduction="none").to(there.dtype)
