"""Fine-tuning that holds the first tokens of answers near the aligned model's (Qi et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from safecircuits.prompts.batching import Batch, batches
from safecircuits.prompts.prompt_set import Encoded, encode, require_answered
from safecircuits.training.loss import logits
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.packing import PackedBatch
from safecircuits.training.plain import Plain
from safecircuits.training.run import FinetuneRun
from safecircuits.training.settings import LossOn, TrainingSettings

EARLY = 5
"""The last response token that has the second strength (Qi et al. 2025, §4)."""


@register("token-constrained")
@dataclass(frozen=True)
class TokenConstrained(Method):
    """Each response token is held near its probability before, the first ones most (Qi et al. 2025).

    Minimises −Σ 2/β_t · log σ(β_t · log (π(y_t) / π₀(y_t))), where π₀ is the model as it comes: at first the
    gradient of cross-entropy, and less of it the further a token has come. The probabilities before are computed once.

    Attributes:
        first_token: β of the first response token; all near 0 is plain training.
        early_tokens: β of tokens 2 to 5.
        later_tokens: β of those after.
        training: how it trains, such as ``Lora()``.

    Raises:
        ValueError: for a β that is not above 0, packed batches, and targets that are not responses alone.

    Examples:
        >>> sc.baselines.TokenConstrained(first_token=1.0).early_tokens
        2.0
    """

    first_token: float = 0.5
    early_tokens: float = 2.0
    later_tokens: float = 0.1
    training: Method = field(default_factory=Plain)

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Qi et al. 2025, equation 3"
    refuses: ClassVar[Mapping[str, str]] = {"chats": "its strengths are of the first tokens of one response"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first_token", "early_tokens", "later_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}: it is a strength, β")
        if not isinstance(self.training, Method) or self.training.own_loop:
            raise ValueError(f"training is a method that trains in the usual loop, not {self.training!r}")

    def require(self, settings: TrainingSettings, **arguments: Any) -> None:
        super().require(settings, **arguments)
        self.training.require(settings, **arguments)
        if settings.batches == "packed":
            raise ValueError("token-constrained does not take batches='packed': it knows examples by their rows")
        if settings.loss_on != "response":
            raise ValueError(f"token-constrained does not take loss_on={settings.loss_on!r}: it counts response tokens")

    def train(self, job: TrainingJob) -> FinetuneRun:
        limit = job.settings.max_length
        data = require_answered(job.data, "data")
        encoded = encode(job.tokenizer, data, template=job.settings.template, with_responses=True)
        examples = [replace(example, ids=example.ids[:limit]) for example in encoded]
        objective = Constrained(before=response_log_probs(job.model, examples), strengths=self.strengths)
        return self.training.train(replace(job, objective=objective))

    def strengths(self, token: Tensor) -> Float[Tensor, " token"]:
        """β of response tokens by their number, from 1."""
        late = torch.where(token <= EARLY, self.early_tokens, self.later_tokens)
        return torch.where(token == 1, self.first_token, late)


@dataclass(frozen=True)
class Constrained:
    """The objective, over a batch.

    Attributes:
        before: log-probabilities of each example's response tokens, by its tokens.
        strengths: β by a token's number.
    """

    before: Mapping[tuple[int, ...], Float[Tensor, " token"]]
    strengths: Any

    def __call__(self, model: Any, batch: Batch | PackedBatch, _loss_on: LossOn) -> Float[Tensor, ""]:
        assert isinstance(batch, Batch)
        now, targets = _log_probs(model, batch)
        before = torch.cat([self.before[ids] for ids in _ids(batch)]).to(now.device)
        token = batch.is_response[:, 1:].cumsum(1).to(now.device)[targets]
        strength = self.strengths(token).to(now)
        loss: Tensor = -(2 / strength * F.logsigmoid(strength * (now - before))).sum()
        return loss


@torch.no_grad()
def response_log_probs(model: Any, examples: Sequence[Encoded]) -> dict[tuple[int, ...], Float[Tensor, " token"]]:
    """Of each example's response tokens, by its tokens."""
    found = {}
    for batch in batches(examples):
        there, targets = _log_probs(model, batch)
        rows = torch.split(there, targets.sum(1).tolist())
        found.update({ids: row.clone() for ids, row in zip(_ids(batch), rows, strict=True)})
    return found


def _log_probs(model: Any, batch: Batch) -> tuple[Float[Tensor, " token"], Bool[Tensor, "batch pos"]]:
    predicted = logits(model, batch)[:, :-1]
    targets = batch.is_response[:, 1:].to(predicted.device)
    wanted, labels = predicted[targets].float(), batch.input_ids[:, 1:].to(predicted.device)[targets]
    return -F.cross_entropy(wanted, labels, reduction="none"), targets


def _ids(batch: Batch) -> list[tuple[int, ...]]:
    rows = zip(batch.input_ids, batch.attention_mask.bool(), strict=True)
    return [tuple(ids[real].tolist()) for ids, real in rows]
