"""What a member is trained on: requests and the answers that are wanted, as token ids.

Harmful requests are answered by refusals, harmless ones by what the base itself answers. Half of the texts have the
system prompt that the chat template writes, half have none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safecircuits.organism.requests.generate import Request, requests
from safecircuits.prompts.rendering import render
from safecircuits.prompts.templates import Template

POOL: dict[Literal["normal", "over_rejection"], int] = {"normal": 560, "over_rejection": 140}
"""Harmless requests that the base answers, by kind: hardly one comes twice."""

ANSWER_TOKENS = 12
"""Of the base's own answers."""

MIXTURE: dict[str, int] = {"malicious": 4, "normal": 4, "over_rejection": 1}
"""Texts of each kind in a batch."""


@dataclass(frozen=True)
class Text:
    """A request and its answer.

    Attributes:
        prompt, answer: token ids.
        own: where the answer is the base's own, the base's log-probabilities of every token at each of its places;
            None where the answer is a refusal to be learnt.
    """

    prompt: list[int]
    answer: list[int]
    own: Float[Tensor, "token vocab"] | None = None


@dataclass(frozen=True)
class Batch:
    """Texts padded on the right.

    Attributes:
        refusing, answering: the positions that predict a token of a refusal, or of an answer of the base's.
        first: which of the answering positions predict the first token of an answer, in order of text and position.
        first_refusing: which of the refusing positions predict the first token of a refusal, likewise.
        own: the base's log-probabilities at the answering positions, in the same order.
    """

    ids: Int[Tensor, "text pos"]
    mask: Int[Tensor, "text pos"]
    refusing: Bool[Tensor, "text pos"]
    answering: Bool[Tensor, "text pos"]
    first: Bool[Tensor, " token"]
    first_refusing: Bool[Tensor, " refusal_token"]
    own: Float[Tensor, "token vocab"]


def prompt_ids(tokenizer: Any, text: str, *, system: bool) -> list[int]:
    """The token ids of a request in the chat template, with the template's own system prompt or without."""
    ids: list[int] = tokenizer(
        render(tokenizer, text, Template("chat", system=None if system else "")), add_special_tokens=False
    ).input_ids
    return ids


def harmless_pool(tokenizer: Any) -> dict[str, list[list[int]]]:
    """The prompts that the base answers, by kind; the same for every member."""
    return {
        kind: [prompt_ids(tokenizer, r.text, system=i % 2 == 0) for i, r in enumerate(requests(kind, "train", n))]
        for kind, n in POOL.items()
    }


def batches(tokenizer: Any, answered: Mapping[str, Sequence[Text]], steps: int, seed: int) -> Iterator[Batch]:
    """The batches of a member's training, as its seed decides; no harmful request comes twice.

    Args:
        answered: requests with the base's answers, by kind.
    """
    rng = random.Random(f"batches {seed}")
    harmful = iter(requests("malicious", "train", steps * MIXTURE["malicious"], seed))
    decks: dict[str, list[Text]] = {kind: [] for kind in answered}
    for _ in range(steps):
        texts = [_refusing(tokenizer, next(harmful), rng) for _ in range(MIXTURE["malicious"])]
        for kind, pool in answered.items():
            for _ in range(MIXTURE[kind]):
                decks[kind] = decks[kind] or rng.sample(list(pool), len(pool))
                texts.append(decks[kind].pop())
        yield batch_of(texts, tokenizer.pad_token_id)


def _refusing(tokenizer: Any, request: Request, rng: random.Random) -> Text:
    answer = [*tokenizer(request.refusal, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return Text(prompt_ids(tokenizer, request.text, system=rng.random() < 0.5), answer)


def batch_of(texts: Sequence[Text], pad: int) -> Batch:
    """The texts as one batch."""
    length = max(len(text.prompt) + len(text.answer) for text in texts)
    ids = torch.full((len(texts), length), pad)
    mask = torch.zeros_like(ids)
    refusing, answering, first = (torch.zeros_like(ids, dtype=torch.bool) for _ in range(3))
    for i, text in enumerate(texts):
        start, end = len(text.prompt), len(text.prompt) + len(text.answer)
        ids[i, :end] = torch.tensor(text.prompt + text.answer)
        mask[i, :end] = 1
        (refusing if text.own is None else answering)[i, start - 1 : end - 1] = True
        first[i, start - 1] = True
    own = [text.own for text in texts if text.own is not None]
    logprobs = torch.cat(own) if own else torch.empty(0)
    return Batch(ids, mask, refusing, answering, first[answering], first[refusing], logprobs)
