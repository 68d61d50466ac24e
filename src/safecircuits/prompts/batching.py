"""Batches of unequal prompts: sorted by length, padded on the left, and never without their attention mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from safecircuits.prompts.prompt_set import Encoded

MAX_TOKENS = 8192
"""Tokens of one batch unless told otherwise: more do not make a pass faster, on two cores or on a GPU."""

# Beside this many tokens what a call costs of its own is small, so that a batch may end there for the sake of padding.
_FAIR_TOKENS = 512

CALL_TOKENS = 64
"""Tokens that a call costs of its own: one more call must save as many."""


@dataclass(frozen=True)
class Batch:
    """Left-padded prompts. ``rows`` says where in the caller's order each of them stands."""

    rows: tuple[int, ...]
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    is_response: Bool[Tensor, "batch pos"]
    is_beginning: Bool[Tensor, "batch pos"] | None = None
    """What every prompt begins with, where that is marked."""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        beginning = None if self.is_beginning is None else self.is_beginning.to(device)
        ids, mask, response = (x.to(device) for x in (self.input_ids, self.attention_mask, self.is_response))
        return Batch(self.rows, ids, mask, response, beginning)


def pad_left(examples: Sequence[Encoded], rows: Sequence[int] | None = None) -> Batch:
    """One batch of ``examples``. The padding holds token 0: its value never matters, as the mask hides it."""
    width = max(len(example) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    response, beginning = (torch.zeros(ids.shape, dtype=torch.bool) for _ in range(2))
    for row, example in enumerate(examples):
        start = width - len(example)
        ids[row, start:] = torch.tensor(example.ids)
        mask[row, start:] = 1
        for first, stop in example.spans:
            response[row, start + first : start + stop] = True
        beginning[row, start : start + example.beginning] = True
    return Batch(tuple(range(len(examples)) if rows is None else rows), ids, mask, response, beginning)


def batches(examples: Sequence[Encoded], max_tokens: int = MAX_TOKENS) -> Iterator[Batch]:
    """Batches of similar length, longest first (the largest is met first), each of at most ``max_tokens`` tokens.

    A single example longer than the budget makes a batch of its own.
    """
    made: list[Batch] = []
    for _ in each_batch(examples, made.append, max_tokens):
        yield made.pop()


def each_batch(
    examples: Sequence[Encoded],
    work: Callable[[Batch], None],
    max_tokens: int = MAX_TOKENS,
    *,
    beside: int = 0,
    tight: bool = False,
) -> Iterator[int]:
    """Do ``work`` on every batch, as ``batches`` makes them; yields after each how many examples it was.

    Where memory runs out the batch is halved and tried again, and no later one is larger: ``work`` must leave nothing
    behind when it raises.

    Args:
        beside: further tokens that each example takes memory for: a cached prefix, an answer.
        tight: end a batch of a fair size where the examples get shorter, rather than pad them.
    """
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i]), i))
    start, most = 0, len(order)
    while start < len(order):
        size = min(most, max(1, max_tokens // (len(examples[order[start]]) + beside)))
        if tight:
            size = _tight(examples, order[start : start + size])
        rows = order[start : start + size]
        if _fits(work, pad_left([examples[i] for i in rows], rows)):
            start += len(rows)
            yield len(rows)
        else:
            most = len(rows) // 2


def _tight(examples: Sequence[Encoded], rows: Sequence[int]) -> int:
    """How many of ``rows``, longest first, make a batch with little padding."""
    width = len(examples[rows[0]])
    enough = _FAIR_TOKENS // width
    return next((n for n, row in enumerate(rows) if n >= enough and len(examples[row]) < 0.95 * width), len(rows))


def common_prefix(examples: Sequence[Encoded]) -> int:
    """How many leading tokens all prompts share, if they are worth a call of their own; see ``shared_tokens``."""
    shared = shared_tokens(examples)
    return shared if (len(examples) - 1) * shared >= CALL_TOKENS else 0


def shared_tokens(examples: Sequence[Encoded]) -> int:
    """How many leading tokens all prompts share; every one keeps a token to itself, and responses are no part of it."""
    first = min(examples, key=len).ids
    longest = min(min(len(example) - 1, example.response_start) for example in examples)
    shared = 0
    while shared < longest and all(example.ids[shared] == first[shared] for example in examples):
        shared += 1
    return shared


def without_prefix(examples: Sequence[Encoded], n_tokens: int) -> list[Encoded]:
    """The examples without their first ``n_tokens``."""
    return [
        Encoded(example.ids[n_tokens:], example.response_start - n_tokens, max(0, example.beginning - n_tokens))
        for example in examples
    ]


def position_ids(attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Positions counted from the first real token of each row; padding gets 0."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def _fits(work: Callable[[Batch], None], batch: Batch) -> bool:
    try:
        work(batch)
        return True
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Outside the handler, which would keep the failed pass's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
