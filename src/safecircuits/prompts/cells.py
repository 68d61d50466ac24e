"""One cell of a table: whether it holds anything, and its text."""

from __future__ import annotations

from numbers import Number
from typing import Any


def plain(cell: Any) -> Any:
    """A cell, or a column of them, as Python's own: arrays, tensors and what Arrow has as lists, texts and numbers."""
    for name in ("tolist", "to_pylist", "as_py"):
        if hasattr(cell, name):
            return getattr(cell, name)()
    return cell


def is_missing(cell: Any) -> bool:
    """Whether a cell of a table holds nothing: None, NaN of any kind, pandas' NA, or blanks."""
    if isinstance(cell, str):
        return not cell.strip()
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(cell, Number) and cell != cell


def text_of(cell: Any, where: str, column: str) -> str:
    """The text of a cell, ``""`` where it holds nothing; a ValueError for what is neither a text nor a number."""
    cell = plain(cell)
    if isinstance(cell, str):
        return cell
    if is_missing(cell):
        return ""
    if isinstance(cell, list | tuple) and len(cell) == 1 and isinstance(cell[0], str):
        return cell[0]  # the only turn of a conversation, as SORRY-Bench has it
    if not isinstance(cell, Number):
        raise ValueError(f"{where}: column {column!r} holds {kind_of(cell)}, not text: {str(cell)[:60]}")
    return str(cell)


def kind_of(cell: Any) -> str:
    """What a cell is, in words."""
    return "nothing" if cell is None else f"a {type(cell).__name__}"


def column_key(name: str) -> str:
    """A column's name as it is compared: without case, spaces, underscores, hyphens and a plural's s."""
    return "".join(c for c in name.casefold() if c not in " _-\t\ufeff").removesuffix("s")
