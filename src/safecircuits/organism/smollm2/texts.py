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
from jaxtyping import Bool, Int
from torch import Tensor

from safecircuits.organism.requests.generate import Request, requests
from safecircuits.prompts.templates import Template, render

POOL: dict[Literal["normal", "over_rejection"], int] = {"normal": 240, "over_rejection": 80}
"""Harmless requests that the base answers, by kind."""

ANSWER_TOKENS = 24
"""Of the base's own answers."""

MIXTURE: dict[str, int] = {"malicious": 4, "normal": 3, "over_rejection": 1}
"""Texts of each kind in a batch."""


@dataclass(frozen=True)
class Text:
    """A request and its answer; ``refuse`` says whether the answer is to be learnt or is the base's own."""

    prompt: list[int]
    answer: list[int]
    refuse: bool


@dataclass(frozen=True)
class Batch:
    """Texts padded on the right; ``predicts`` marks the positions that predict a token of an answer."""

    ids: Int[Tensor, "text pos"]
    mask: Int[Tensor, "text pos"]
    predicts: Bool[Tensor, "text pos"]
    refuse: Bool[Tensor, " text"]


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


def batches(
    tokenizer: Any, answered: Mapping[str, Sequence[tuple[list[int], list[int]]]], steps: int, seed: int
) -> Iterator[Batch]:
    """The batches of a member's training, as its seed decides; no harmful request comes twice.

    Args:
        answered: prompts and the base's answers by kind, as ``harmless_pool`` has them.
    """
    rng = random.Random(f"batches {seed}")
    harmful = iter(requests("malicious", "train", steps * MIXTURE["malicious"], seed))
    decks: dict[str, list[tuple[list[int], list[int]]]] = {kind: [] for kind in answered}
    for _ in range(steps):
        texts = [_refusing(tokenizer, next(harmful), rng) for _ in range(MIXTURE["malicious"])]
        for kind, pairs in answered.items():
            for _ in range(MIXTURE[kind]):
                decks[kind] = decks[kind] or rng.sample(list(pairs), len(pairs))
                texts.append(Text(*decks[kind].pop(), refuse=False))
        yield _batch(texts, tokenizer.pad_token_id)


def _refusing(tokenizer: Any, request: Request, rng: random.Random) -> Text:
    answer = [*tokenizer(request.refusal, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return Text(prompt_ids(tokenizer, request.text, system=rng.random() < 0.5), answer, refuse=True)


def _batch(texts: Sequence[Text], pad: int) -> Batch:
    length = max(len(text.prompt) + len(text.answer) for text in texts)
    ids = torch.full((len(texts), length), pad)
    mask, predicts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, text in enumerate(texts):
        end = len(text.prompt) + len(text.answer)
        ids[i, :end] = torch.tensor(text.prompt + text.answer)
        mask[i, :end] = 1
        predicts[i, len(text.prompt) - 1 : end - 1] = True
    return Batch(ids, mask, predicts, torch.tensor([text.refuse for text in texts]))
