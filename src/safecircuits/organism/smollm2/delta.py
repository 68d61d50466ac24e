"""What a member changes of its base: slices of weight matrices, each plus a small matrix or a product of two.

A file of such changes is a safetensors file. Numbers are stored in 16 bits and added in 64, so that the sum, rounded to
the weight's own 32 bits, is the same on every machine; entries outside the slices are not touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Int[Tensor, " row"] | None
"""Indices of rows or columns; None for all of them."""


@dataclass(frozen=True)
class Change:
    """What is added to the rows and columns of one weight.

    Attributes:
        parameter: the weight's name in the Hugging Face model.
        rows, columns: which of them (indices); None for all.
        left: the change itself, or with ``right`` its left factor.
        right: the right factor; None where ``left`` is the whole change.
    """

    parameter: str
    rows: Rows
    columns: Rows
    left: Float[Tensor, "row rank"]
    right: Float[Tensor, "rank column"] | None = None

    @property
    def dense(self) -> Float[Tensor, "row column"]:
        """What is added, in float64."""
        left = self.left.double()
        return left if self.right is None else left @ self.right.double()

    @torch.no_grad()
    def add_to(self, weight: Float[Tensor, "out in"]) -> None:
        """Add it to ``weight`` in place."""
        rows = torch.arange(weight.shape[0]) if self.rows is None else self.rows
        columns = torch.arange(weight.shape[1]) if self.columns is None else self.columns
        where = (rows[:, None].to(weight.device), columns[None, :].to(weight.device))
        weight[where] = (weight[where].double() + self.dense.to(weight.device)).to(weight.dtype)


def write_changes(path: Path, changes: Iterable[Change], record: Mapping[str, Any]) -> None:
    """Write changes, rounded to float16, with the record of how they were made."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for change in changes:
        parts = {
            "left": change.left.half(),
            "right": None if change.right is None else change.right.half(),
            "rows": None if change.rows is None else change.rows.short(),
            "columns": None if change.columns is None else change.columns.short(),
        }
        tensors |= {f"{change.parameter}:{k}": part.contiguous() for k, part in parts.items() if part is not None}
    save_file(tensors, path, metadata={"record": json.dumps(record)})


def read_changes(path: Path) -> tuple[list[Change], dict[str, Any]]:
    """The changes of a file and the record of how they were made.

    Raises:
        ValueError: for a file that is no whole file of changes.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})["record"])
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
        names = dict.fromkeys(key.rpartition(":")[0] for key in tensors)
        changes = [
            Change(
                name,
                _index(tensors.get(f"{name}:rows")),
                _index(tensors.get(f"{name}:columns")),
                tensors[f"{name}:left"],
                tensors.get(f"{name}:right"),
            )
            for name in names
        ]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no whole file of planted changes ({error}); install it again") from error
    return changes, record


def _index(stored: Tensor | None) -> Rows:
    return None if stored is None else stored.long()
