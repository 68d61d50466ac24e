"""Several examples in one row, each as if it were alone: no padding between them, and no attention across.

Positions start again at 0 with each example, and Hugging Face's models build the block mask from that by themselves,
sliding windows included. Whether a given model really keeps the examples of a row apart is not taken on trust: see
``loss.require_separable``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from safecircuits.prompts.prompt_set import Encoded


@dataclass(frozen=True)
class PackedBatch:
    """Rows of examples one after the other. Padding, at the ends of rows, has position 0 throughout."""

    input_ids: Int[Tensor, "row pos"]
    position_ids: Int[Tensor, "row pos"]
    is_response: Bool[Tensor, "row pos"]

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(self.input_ids.to(device), self.position_ids.to(device), self.is_response.to(device))


def pack(examples: Sequence[Encoded]) -> PackedBatch:
    """Rows as wide as the longest example, each filled with as many more as fit (first-fit decreasing)."""
    width = max(len(example) for example in examples)
    rows: list[list[Encoded]] = []
    room: list[int] = []
    for example in sorted(examples, key=len, reverse=True):
        row = next((i for i, left in enumerate(room) if left >= len(example)), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(example)
        room[row] -= len(example)
    return in_rows(rows)


def in_rows(rows: Sequence[Sequence[Encoded]]) -> PackedBatch:
    """One batch of the given rows of examples."""
    width = max(sum(len(example) for example in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions, response = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example)
            ids[i, start:end] = torch.tensor(example.ids)
            positions[i, start:end] = torch.arange(len(example))
            for first, stop in example.spans:
                response[i, start + first : start + stop] = True
            start = end
    return PackedBatch(ids, positions, response)
