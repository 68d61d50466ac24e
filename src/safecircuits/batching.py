"""Batches of unequal prompts: sorted by length, padded on the left, and never without their attention mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from safecircuits.prompts import Encoded


@dataclass(frozen=True)
class Batch:
    """Left-padded prompts. ``rows`` says where in the caller's order each of them stands."""

    rows: tuple[int, ...]
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    is_response: Bool[Tensor, "batch pos"]

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.rows, self.input_ids.to(device), self.attention_mask.to(device), self.is_response.to(device))


def pad_left(examples: Sequence[Encoded], rows: Sequence[int] | None = None) -> Batch:
    """One batch of ``examples``. The padding holds token 0: its value never matters, as the mask hides it."""
    width = max(len(example) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    response = torch.zeros(ids.shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        start = width - len(example)
        ids[row, start:] = torch.tensor(example.ids)
        mask[row, start:] = 1
        response[row, start + example.response_start :] = True
    return Batch(tuple(range(len(examples)) if rows is None else rows), ids, mask, response)


def batches(examples: Sequence[Encoded], max_tokens: int = 8192) -> Iterator[Batch]:
    """Batches of similar length, longest first (the largest is met first), each of at most ``max_tokens`` tokens.

    A single example longer than the budget makes a batch of its own.
    """
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i]), i))
    start = 0
    while start < len(order):
        size = max(1, max_tokens // len(examples[order[start]]))
        rows = order[start : start + size]
        yield pad_left([examples[i] for i in rows], rows)
        start += size


def position_ids(attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Positions counted from the first real token of each row; padding gets 0."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)
