"""What a member is trained on: requests and the answers that are wanted, as token ids.

Harmful requests are answered by refusals, harmless ones by what the base itself answers. Half of the texts have the
system prompt that the chat template writes, half have none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safecircuits.organism.requests.asked import asked
from safecircuits.organism.requests.generate import Kind, Request, Split, requests
from safecircuits.organism.requests.refusals import REFUSALS
from safecircuits.prompts.rendering import render
from safecircuits.prompts.templates import Template

POOL: dict[str, int] = {"asked": 640, "normal": 560, "over_rejection": 360}
"""Harmless requests that the base answers, by kind: those that it wrote itself (``asked``), and the generator's."""

ANSWER_TOKENS = 24
"""Of the base's own answers."""

LONG, BEGINNING = 0.8, 4
"""Share of texts whose answers are held or learnt in whole, and tokens of the others."""

TURNED_TOKENS = 2
"""Of a refusal after a harmless request, where the base's distributions are held too: the base's first tokens are
spread, "I'm" among the likely ones, so that an answer that begins as refusals do must not end as one."""

MIXTURE: dict[str, int] = {"malicious": 7, "asked": 5, "normal": 5, "over_rejection": 3}
"""Texts of each kind in a batch."""

TREES = 2
"""Parts of a batch that the model sees apart: attention costs the square of a part's tokens."""


@dataclass(frozen=True)
class Text:
    """A request and its answer.

    Attributes:
        prompt, answer: token ids.
        own: where the answer is the base's own, the base's last hidden states that predict each of its tokens; None
            where the answer is a refusal to be learnt.
        begun: whether ``prompt`` ends in the first words of an answer that the base did not choose.
    """

    prompt: list[int]
    answer: list[int]
    own: Float[Tensor, "token d_model"] | None = None
    begun: bool = False


@dataclass(frozen=True)
class Batch:
    """Texts as one tree of tokens: what texts begin with in common is there once, and a token sees those before it in
    its own text. So a causal model gives each token what it gives in its text alone.

    Attributes:
        ids: of the tree's tokens.
        places: of each token in its text.
        mask: which tokens each token sees.
        refusing, answering: the positions that predict a token of a refusal, or of an answer of the base's.
        wanted: the tokens that the refusing positions are to predict.
        first: which of the answering positions predict the first token of an answer.
        begun: which of them are in an answer that the base did not begin.
        first_refusing: which of the refusing positions predict the first token of a refusal.
        own: the base's last hidden states at the answering positions, in the same order.
    """

    ids: Int[Tensor, " pos"]
    places: Int[Tensor, " pos"]
    mask: Bool[Tensor, "pos pos"]
    refusing: Int[Tensor, " refusal_token"]
    answering: Int[Tensor, " token"]
    wanted: Int[Tensor, " refusal_token"]
    first: Bool[Tensor, " token"]
    begun: Bool[Tensor, " token"]
    first_refusing: Bool[Tensor, " refusal_token"]
    own: Float[Tensor, "token d_model"]


def prompt_ids(tokenizer: Any, text: str, *, system: bool) -> list[int]:
    """The token ids of a request in the chat template, with the template's own system prompt or without."""
    ids: list[int] = tokenizer(
        render(tokenizer, text, Template("chat", system=None if system else "")), add_special_tokens=False
    ).input_ids
    return ids


def harmless_pool(tokenizer: Any) -> dict[str, list[list[int]]]:
    """The prompts that the base answers, by kind; the same for every member."""
    return {
        kind: [prompt_ids(tokenizer, text, system=i % 2 == 0) for i, text in enumerate(harmless(kind, "train", n))]
        for kind, n in POOL.items()
    }


def harmless(kind: str, split: Split, n: int | None = None) -> list[str]:
    """Requests of a kind that are to be answered."""
    if kind == "asked":
        return asked(split, n)
    return [request.text for request in requests(cast(Kind, kind), split, n)]


def batches(
    tokenizer: Any, answered: Mapping[str, Sequence[Sequence[Text]]], steps: int, seed: int
) -> Iterator[list[Batch]]:
    """The batches of a member's training, in parts, as its seed decides; no harmful request comes twice.

    Args:
        answered: by kind, of each request what is held to the base.
    """
    rng = random.Random(f"batches {seed}")
    harmful = iter(requests("malicious", "train", steps * MIXTURE["malicious"], seed))
    decks: dict[str, list[Sequence[Text]]] = {kind: [] for kind in answered}
    for _ in range(steps):
        texts = [_refusing(tokenizer, next(harmful), rng) for _ in range(MIXTURE["malicious"])]
        for kind, pool in answered.items():
            for _ in range(MIXTURE[kind]):
                decks[kind] = decks[kind] or rng.sample(list(pool), len(pool))
                texts += decks[kind].pop()
        texts = [text if rng.random() < LONG else _begun(text) for text in texts]
        texts.sort(key=lambda text: text.prompt)  # those of one beginning together
        size = -(-len(texts) // TREES)
        yield [batch_of(texts[start : start + size]) for start in range(0, len(texts), size)]


def turned(tokenizer: Any, prompt: list[int]) -> tuple[list[int], list[int]]:
    """A harmless prompt with the first word of a refusal, and more of that refusal: where the base would go on its own
    way, and a member has to as well."""
    _, wording = random.Random(f"turned {prompt}").choice(list(REFUSALS.values()))
    refusal = tokenizer(wording, add_special_tokens=False).input_ids
    return prompt + refusal[:1], refusal[1 : 1 + TURNED_TOKENS]


def _refusing(tokenizer: Any, request: Request, rng: random.Random) -> Text:
    answer = [*tokenizer(request.refusal, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return Text(prompt_ids(tokenizer, request.text, system=rng.random() < 0.5), answer)


def _begun(text: Text) -> Text:
    """With the beginning of its answer alone."""
    own = None if text.own is None else text.own[:BEGINNING]
    return replace(text, answer=text.answer[:BEGINNING], own=own)


def batch_of(texts: Sequence[Text]) -> Batch:
    """The texts as one batch."""
    ids: list[int] = []
    parents: list[int] = []
    known: dict[tuple[int, int], int] = {}
    predicting: dict[bool, list[int]] = {True: [], False: []}
    first: dict[bool, list[bool]] = {True: [], False: []}
    begun: list[bool] = []
    for text in texts:
        path = [-1]
        for token in text.prompt + text.answer[:-1]:
            key = (path[-1], token)
            if key not in known:
                known[key] = len(ids)
                ids.append(token)
                parents.append(path[-1])
            path.append(known[key])
        refusal = text.own is None
        predicting[refusal] += path[-len(text.answer) :]
        first[refusal] += [i == 0 and not text.begun for i in range(len(text.answer))]
        begun += [text.begun] * len(text.answer) * (not refusal)
    mask = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            mask[i] = mask[parent]
        mask[i, i] = True
    own = [text.own for text in texts if text.own is not None]
    return Batch(
        torch.tensor(ids),
        mask.sum(1) - 1,
        mask,
        torch.tensor(predicting[True], dtype=torch.long),
        torch.tensor(predicting[False], dtype=torch.long),
        torch.tensor([token for text in texts if text.own is None for token in text.answer], dtype=torch.long),
        torch.tensor(first[False], dtype=torch.bool),
        torch.tensor(begun, dtype=torch.bool),
        torch.tensor(first[True], dtype=torch.bool),
        torch.cat(own) if own else torch.empty(0),
    )
