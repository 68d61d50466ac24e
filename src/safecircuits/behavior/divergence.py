"""How far a changed model's next tokens are from the intact one's: KL divergence, at the first token and further on.

KL(intact ‖ changed) in nats, of whole distributions over the vocabulary. At the first answer token it is what Arditi et
al. (2024) bound on harmless prompts. Over the intact model's own greedy answer, token by token, it sees what the first
one does not: an answer that begins as ever and breaks later; and on malicious prompts how deep a change goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.stats import mean_interval
from safecircuits.behavior.generate import written_tokens
from safecircuits.hooks.first_logits import first_logits
from safecircuits.model.forward import logits
from safecircuits.model.shares import in_order, spread
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.prompts.templates import stop_string
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd

TOKENS = 8
"""Of an answer that are looked at unless said otherwise."""

KL_NAMES = ("first_token_kl", "per_token_kl")
"""What the two means of a ``TokenKL`` are called."""

_AT_ONCE = 1024  # positions of a batch, whose logits are held together


def kl_divergence(
    intact: Float[Tensor, "*batch d_vocab"], changed: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(intact ‖ changed) of the distributions that two sets of logits stand for, in nats; float64, at least 0.

    Logits, or log-probabilities, in any dtype: log-softmax is taken in float64, so that none of it is lost to half
    precision. A logit of −∞ is a token that cannot be: where the intact model has one it adds nothing, and where only
    the changed model has one, of a token that the intact model could say, the divergence is infinite, as it is.

    Raises:
        ValueError: for logits of different shapes.
        FloatingPointError: for logits that are NaN or +∞, and for a row in which all are −∞.

    Examples:
        >>> sc.behavior.kl_divergence(torch.tensor([0.0, 0.0]), torch.tensor([0.0, float("-inf")]))
        tensor(inf, dtype=torch.float64)
    """
    if intact.shape != changed.shape:
        raise ValueError(
            f"logits of shape {list(intact.shape)} and of {list(changed.shape)} are not of the same tokens"
        )
    p, q = (_log_softmax(values, name) for values, name in ((intact, "intact"), (changed, "changed")))
    # Where p is 0, p (log p − log q) is 0 whatever log q is: −∞ − −∞ would be NaN.
    there = p > -torch.inf
    terms = torch.where(there, p.exp() * (torch.where(there, p, 0.0) - torch.where(there, q, 0.0)), 0.0)
    return terms.sum(-1).clamp(min=0.0)


def _log_softmax(values: Tensor, name: str) -> Tensor:
    wide = values.double()
    if bool((wide.isnan() | (wide == torch.inf)).any()) or bool((wide == -torch.inf).all(-1).any()):
        raise FloatingPointError(
            f"the {name} model's logits are not finite, so there is no divergence: try another dtype"
        )
    return wide.log_softmax(-1)


@dataclass(frozen=True)
class TokenKL(Result):
    """KL(intact ‖ changed) of each prompt at each token of the intact model's answer, in nats.

    Attributes:
        values: the first column is the first answer token; NaN beyond the end of an answer.

    Examples:
        >>> reference = sc.behavior.KLReference.of(model, normal)
        >>> with sc.scaled(model, (3, 5), alpha=1.2):
        ...     found = reference.divergence(model)
        >>> found.values.shape, bool(found.first.min() >= 0)
        (torch.Size([8, 8]), True)
    """

    values: Float[Tensor, "prompt token"]
    provenance: dict[str, Any]

    @property
    def first(self) -> Float[Tensor, " prompt"]:
        """At the first answer token."""
        return self.values[:, 0]

    @property
    def per_token(self) -> Float[Tensor, " prompt"]:
        """Mean over each answer's tokens."""
        return self.values.nanmean(1)

    @property
    def by_position(self) -> Float[Tensor, " token"]:
        """Mean over the prompts whose answers reach that far: how deep the difference goes."""
        return self.values.nanmean(0)

    @property
    def means(self) -> dict[str, tuple[float, float, float]]:
        """``first_token_kl`` and ``per_token_kl``: mean over prompts with its 95 % interval (Student's t)."""
        return {name: _mean(values) for name, values in zip(KL_NAMES, (self.first, self.per_token), strict=True)}

    def to_frame(self) -> pd.DataFrame:
        """One row a token: ``token`` (0 is the first), mean ``kl`` and over how many prompts."""
        import pandas as pd

        there = (~self.values.isnan()).sum(0).tolist()
        return pd.DataFrame({"token": range(len(there)), "kl": self.by_position.tolist(), "prompts": there})

    def record(self) -> dict[str, Any]:
        """``first_token_kl`` and ``per_token_kl`` with their intervals, and the mean ``by_position``."""
        named: dict[str, Any] = {}
        for name, (mean, low, high) in self.means.items():
            named |= {name: mean, f"{name}_interval": [low, high]}
        return {**named, "by_position": self.by_position.tolist()}

    def __str__(self) -> str:
        first, each = (f"{m:.3g} [{low:.3g}, {high:.3g}]" for m, low, high in self.means.values())
        return f"KL to the intact model {first} at the first token, {each} over {self.values.shape[1]} tokens, in nats"


def _mean(values: Tensor) -> tuple[float, float, float]:
    if len(values) > 1 and bool(torch.isfinite(values).all()):
        mean, low, high = mean_interval(values)
        return mean, max(0.0, low), high
    return float(values.mean()), float("nan"), float("nan")


@dataclass(frozen=True)
class KLReference:
    """What the intact model says next, to compare changed ones with: whole distributions, on the CPU.

    It takes 4 bytes a prompt, token and word of the vocabulary: 50 MB for 32 prompts, 8 tokens and 50,000 words.

    Examples:
        >>> reference = sc.behavior.KLReference.of(model, malicious, n_tokens=4)
        >>> reference.divergence(model).first.max() < 1e-6
        tensor(True)
    """

    examples: tuple[Encoded, ...]
    """Prompts with the intact model's own answers."""
    log_probs: tuple[Float[Tensor, "token d_vocab"], ...]
    """Of each answer token, and of its end where that was within the limit; float32."""
    n_tokens: int
    provenance: dict[str, Any]
    tokenizer: Any = field(default=None, compare=False, repr=False)
    """The intact model's, whose tokens a changed one must have."""

    @classmethod
    @checked
    def of(
        cls,
        model: HookedModel,
        prompts: PromptSet | Sequence[str],
        *,
        n_tokens: int = TOKENS,
        template: str = "auto",
        system: str | None = None,
        max_tokens: int | None = None,
        tokenizer: Any = None,
    ) -> KLReference:
        """Ask the model, as it is now, hooks included.

        Args:
            n_tokens: of each answer; 1 looks at the first token alone, and then nothing is generated.
            tokenizer: puts the prompts to the model; its own unless given.

        Raises:
            ValueError: for no tokens.
            FloatingPointError: if the logits are not finite.
        """
        if n_tokens < 1:
            raise ValueError(f"n_tokens must be at least 1, not {n_tokens}")
        given = as_prompt_set(prompts)
        tokenizer = tokenizer or tokenizer_of(model)
        asked = encode(tokenizer, given, template=template, system=system)
        written: list[list[int]] = [[] for _ in asked]
        if n_tokens > 1:
            written = written_tokens(model, asked, n_tokens - 1, stop_string(tokenizer, template), max_tokens)
        examples = tuple(Encoded((*a.ids, *ids), len(a)) for a, ids in zip(asked, written, strict=True))
        log_probs = tuple(_log_softmax(rows, "intact").float() for rows in _next_logits(model, examples, max_tokens))
        provenance = {"prompts": given.identity, "template": template, "system": system, "n_tokens": n_tokens}
        return cls(examples, log_probs, n_tokens, provenance, tokenizer)

    def divergence(self, model: HookedModel, *, max_tokens: int | None = None) -> TokenKL:
        """How far the model, as it is now, is from what was seen.

        Raises:
            ValueError: for a model of another vocabulary: of another size, or with other tokens.
            FloatingPointError: if its logits are not finite.
        """
        if self.tokenizer is not None:
            _require_tokens(self.tokenizer, tokenizer_of(model))
        values = torch.full((len(self.examples), self.n_tokens), torch.nan, dtype=torch.float64)
        for row, now in enumerate(_next_logits(model, self.examples, max_tokens)):
            values[row, : len(now)] = kl_divergence(self.log_probs[row], now)
        return TokenKL(values, self.provenance)


def _require_tokens(intact: Any, changed: Any) -> None:
    """Raise a ValueError unless two tokenizers number their tokens alike; either may have added some."""
    if intact is changed:
        return
    ours, theirs = intact.get_vocab(), changed.get_vocab()
    shared = ours.keys() & theirs.keys()
    moved = min((token for token in shared if ours[token] != theirs[token]), default=None)
    if moved is not None or 2 * len(shared) < len(ours):
        which = f"have {len(shared)} tokens in common" if moved is None else f"number {moved!r} differently"
        raise ValueError(
            f"the tokenizers of the two models (of {len(ours)} and {len(theirs)} tokens) {which}: there is no "
            "divergence between what they say next; compare models of one vocabulary"
        )


def references_of(model: HookedModel, sets: Mapping[str, Any], *, n_tokens: int = TOKENS) -> dict[str, KLReference]:
    """A reference for each kind of prompt among the arguments of ``evaluate``: ``malicious`` and ``harmless``.

    Harmless are the utility prompts, and without these the over-rejection set's.
    """
    asked = {"malicious": sets.get("malicious"), "harmless": sets.get(harmless_of(sets))}
    options = {name: sets[name] for name in ("template", "system", "max_tokens") if name in sets}
    return {
        kind: KLReference.of(model, prompts, n_tokens=n_tokens, **options)
        for kind, prompts in asked.items()
        if prompts is not None
    }


def harmless_of(sets: Mapping[str, Any]) -> str:
    """Which of the sets that are given (not None) is the harmless one: ``utility``, else ``over_rejection``."""
    return "utility" if sets.get("utility") is not None else "over_rejection"


def divergences(references: Mapping[str, KLReference], model: HookedModel) -> dict[str, TokenKL]:
    """The divergence from each reference, by its name."""
    return {name: reference.divergence(model) for name, reference in references.items()}


def _next_logits(model: HookedModel, examples: Sequence[Encoded], max_tokens: int | None) -> list[Tensor]:
    """Of each example the logits from the last token of its prompt on."""
    if all(len(example) == example.response_start for example in examples):
        return [row[None] for row in first_logits(model, examples, max_tokens=max_tokens)]

    def logits_of(share: list[int]) -> list[Tensor]:
        return _answer_logits(model, [examples[row] for row in share], max_tokens)

    return in_order(spread(model, examples, logits_of, "logits of answers"))


@torch.inference_mode()
def _answer_logits(model: HookedModel, examples: Sequence[Encoded], max_tokens: int | None) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for batch in batches(examples, min(max_tokens or _AT_ONCE, _AT_ONCE)):
        out = logits(model, batch)
        for place, row in enumerate(batch.rows):
            answered = len(examples[row]) - examples[row].response_start
            found[row] = out[place, -1 - answered :].cpu()
    return [found[row] for row in range(len(examples))]
