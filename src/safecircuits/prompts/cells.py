"""One cell of a table: whether it holds anything, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_missing(cell: Any) -> bool:
    """Whether a cell of a table holds nothing: None, NaN, pandas' NA, or blanks."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and cell != cell)


def text_of(cell: Any, where: str, column: str) -> str:
    """The text of a cell, ``""`` where it holds nothing; a ValueError for what is neither a text nor a number."""
    if isinstance(cell, str):
        return cell
    if is_missing(cell):
        return ""
    if not isinstance(cell, Mapping) and hasattr(cell, "__len__") and len(cell) == 1 and isinstance(cell[0], str):
        return cell[0]  # the only turn of a conversation, as SORRY-Bench has it
    if isinstance(cell, Mapping) or hasattr(cell, "__len__"):
        raise ValueError(f"{where}: column {column!r} holds {kind_of(cell)}, not text: {str(cell)[:60]}")
    return str(cell)


def kind_of(cell: Any) -> str:
    """What a cell is, in words."""
    return "nothing" if cell is None else f"a {type(cell).__name__}"
