"""Utility against reference answers: Rouge-L of what a model writes, and the loss it gives to what it should write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.stats import canonical_order, rate_interval
from safecircuits.behavior.completions import Completions, texts_of
from safecircuits.model.forward import logits
from safecircuits.model.shares import columns_in_order, spread
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RougeScores(Result):
    """Rouge-L of each completion against its reference: precision, recall and their harmonic mean, 0 to 1.

    Examples:
        >>> scores = sc.behavior.rouge_l(["the cat sat"], ["the cat sat down"])
        >>> scores.precision.tolist(), scores.recall.tolist()
        ([1.0], [0.75])
    """

    precision: Float[Tensor, " prompt"]
    recall: Float[Tensor, " prompt"]
    f1: Float[Tensor, " prompt"]

    @property
    def mean(self) -> tuple[float, float, float]:
        """S_r, the mean F measure (Safety Layers §4), with its 95 % interval over prompts, within 0 to 1."""
        return rate_interval(self.f1)

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt: ``precision``, ``recall``, ``f1``."""
        import pandas as pd

        return pd.DataFrame({name: getattr(self, name).tolist() for name in ("precision", "recall", "f1")})

    def __str__(self) -> str:
        mean, low, high = self.mean
        return f"Rouge-L {mean:.3f} [{low:.3f}, {high:.3f}] ({len(self.f1)})"


def rouge_l(
    completions: Completions | Sequence[str], references: PromptSet | Sequence[str], *, stem: bool = False
) -> RougeScores:
    """Rouge-L by the ``rouge-score`` package, as lower-case words and numbers; it needs the extra ``eval``.

    Args:
        references: the wanted answers, or the prompt set whose responses they are.
        stem: reduce words to their stems first (the package's ``use_stemmer``).

    Raises:
        ValueError: if completions and references differ in number or there are none.
        ImportError: without ``rouge-score``.

    Examples:
        >>> answers = sc.generate(model, utility)
        >>> sc.behavior.rouge_l(answers, utility).f1.shape
        torch.Size([8])
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("Rouge-L needs the package rouge-score: pip install 'safecircuits[eval]'") from error
    texts = texts_of(completions)
    wanted = references.require_responses() if isinstance(references, PromptSet) else texts_of(references)
    if not texts or len(texts) != len(wanted):
        raise ValueError(
            f"{len(texts)} completions and {len(wanted)} references: one for each is needed, and at least 1"
        )
    scorer = RougeScorer(["rougeL"], use_stemmer=stem)
    scores = [scorer.score(reference, text)["rougeL"] for text, reference in zip(texts, wanted, strict=True)]
    return RougeScores(
        *(
            torch.tensor([getattr(s, part) for s in scores], dtype=torch.float32)
            for part in ("precision", "recall", "fmeasure")
        )
    )


@dataclass(frozen=True)
class ResponseLoss(Result):
    """Loss on held-out responses: ``nats`` summed over each response's ``tokens``, its end of sequence among them.

    Examples:
        >>> loss = sc.response_loss(model, utility)
        >>> loss.nats.shape
        torch.Size([8])
        >>> loss.perplexity < 1.1
        True
    """

    nats: Float[Tensor, " prompt"]
    tokens: Int[Tensor, " prompt"]
    provenance: dict[str, Any]

    @property
    def loss(self) -> float:
        """Mean cross-entropy a response token, in nats; every token counts the same, whichever its response."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """exp of ``loss``."""
        return math.exp(self.loss)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of ``loss``, responses resampled whole; NaN for a single response."""
        n = len(self.nats)
        if n < 2:
            return float("nan"), float("nan")
        order = canonical_order(list(zip(self.nats.tolist(), self.tokens.tolist(), strict=True)))
        picks = np.random.default_rng(0).integers(0, n, (2000, n))
        drawn = self.nats[order].numpy()[picks].sum(axis=1) / self.tokens[order].numpy()[picks].sum(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return float(low), float(high)

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt: ``nats``, ``tokens``, ``loss`` a token."""
        import pandas as pd

        loss = (self.nats / self.tokens).tolist()
        return pd.DataFrame({"nats": self.nats.tolist(), "tokens": self.tokens.tolist(), "loss": loss})

    def __str__(self) -> str:
        low, high = self.interval
        return f"loss {self.loss:.4f} [{low:.4f}, {high:.4f}] nats a token, perplexity {self.perplexity:.4g}"


@checked
def response_loss(
    model: HookedModel,
    heldout: PromptSet,
    *,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int = 4096,
    progress: bool = False,
) -> ResponseLoss:
    """Cross-entropy of the responses given their prompts, in nats per response token. Hooks stay in force.

    Args:
        heldout: prompts with responses, which the model was not trained on.
        template, system: as in ``generate``.
        max_tokens: tokens in one batch, padding included; logits of all of them are held at once.

    Raises:
        ValueError: if the set has no responses.
        FloatingPointError: if a loss is not finite.

    Examples:
        >>> aligned, base = (sc.response_loss(m, malicious) for m in (model, sc.load_model("base")))
        >>> aligned.loss < base.loss  # nats a token of the refusals
        True
    """
    examples = encode(tokenizer_of(model), heldout, template=template, system=system, with_responses=True)
    tokens = torch.tensor([len(example) - example.response_start for example in examples])

    def losses_of(share: list[int]) -> Float[Tensor, " share"]:
        return _nats(model, [examples[row] for row in share], max_tokens, progress)

    nats = columns_in_order(spread(model, examples, losses_of, "response_loss"))
    if not torch.isfinite(nats).all():
        broken = int((~torch.isfinite(nats)).nonzero()[0])
        raise FloatingPointError(f"the loss of response {broken} of set {heldout.name!r} is not finite")
    made_by = {
        "heldout": heldout.identity,
        "template": template,
        "system": system,
    }
    return ResponseLoss(nats, tokens, made_by)


def _nats(model: HookedModel, examples: Sequence[Encoded], max_tokens: int, progress: bool) -> Float[Tensor, " prompt"]:
    """The loss of each response, summed over its tokens, in float64."""
    nats = torch.zeros(len(examples), dtype=torch.float64)
    with torch.inference_mode():
        for batch in track(list(batches(examples, max_tokens)), "held-out loss", enabled=progress):
            predicted = logits(model, batch)[:, :-1]
            targets = batch.is_response[:, 1:].to(predicted.device)
            labels = batch.input_ids[:, 1:].to(predicted.device)
            losses = torch.zeros(labels.shape, dtype=torch.float64)
            losses[targets.cpu()] = (
                F.cross_entropy(predicted[targets].float(), labels[targets], reduction="none").double().cpu()
            )
            nats[list(batch.rows)] = losses.sum(dim=1)
    return nats
