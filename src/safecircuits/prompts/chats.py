"""One cell of a data set as text: a string, a number, or a chat of one question and its answer.

Chats are lists of messages, as OpenAI and TRL write them (``{"role": "user", "content": …}``), or as ShareGPT does
(``{"from": "human", "value": …}``).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

CHAT_COLUMNS = ("messages", "conversations")
"""Names of columns with whole chats."""
_ASKS, _ANSWERS = ("user", "human"), ("assistant", "gpt", "model")


def read_cells(cells: Sequence[Any], column: str, label: str) -> tuple[list[str], list[str] | None]:
    """The texts of a column, and the answers in it where it holds chats with answers.

    What is missing (None, NaN) is an empty text. A column whose chats have only answers is one of answers.

    Raises:
        ValueError: for what is neither a text nor a number nor a chat of one question and its answer.
    """
    cells = _parsed(cells, column, label)
    if not any(map(_is_chat, cells)):
        return [_text(cell, f"row {i} of {label!r}", column) for i, cell in enumerate(cells, 1)], None
    asked, answered = [], []
    for i, cell in enumerate(cells, 1):
        where = f"row {i} of {label!r}"
        if not _is_chat(cell):
            raise ValueError(f"{where}: column {column!r} holds {_kind(cell)} where other rows hold a chat")
        question, answer = _exchange(cell, where, column)
        asked.append(question)
        answered.append(answer)
    if not any(asked):
        return answered, None
    return asked, answered if any(answered) else None


_STRINGIFIED = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")


def _parsed(cells: Sequence[Any], column: str, label: str) -> Sequence[Any]:
    """The cells, chats of them where they are written as text, as csv files have them: as JSON or as Python does."""
    filled = [cell for cell in cells if not is_missing(cell)]
    chats = [cell for cell in filled if isinstance(cell, str) and _STRINGIFIED.match(cell)]
    if not chats or (len(chats) < len(filled) and column.strip().lower() not in CHAT_COLUMNS):
        return cells
    return [
        _chat_in(cell, f"row {i} of {label!r}: column {column!r}") if isinstance(cell, str) and cell.strip() else cell
        for i, cell in enumerate(cells, 1)
    ]


def _chat_in(text: str, where: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            chat = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if _is_chat(chat):
            return chat
    raise ValueError(
        f"{where} holds a chat as text that cannot be read: {text[:60]!r}; save the data as jsonl or parquet, which "
        "keep chats as they are"
    )


def is_missing(cell: Any) -> bool:
    """Whether a cell of a table holds nothing: None, NaN, pandas' NA, or blanks."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and cell != cell)


def _text(cell: Any, where: str, column: str) -> str:
    if isinstance(cell, str):
        return cell
    if is_missing(cell):
        return ""
    if not isinstance(cell, Mapping) and hasattr(cell, "__len__") and len(cell) == 1 and isinstance(cell[0], str):
        return cell[0]  # the only turn of a conversation, as SORRY-Bench has it
    if isinstance(cell, Mapping) or hasattr(cell, "__len__"):
        raise ValueError(f"{where}: column {column!r} holds {_kind(cell)}, not text: {str(cell)[:60]}")
    return str(cell)


def _kind(cell: Any) -> str:
    return "nothing" if cell is None else f"a {type(cell).__name__}"


def _is_chat(cell: Any) -> bool:
    """Whether this is a list (or, from a parquet file, an array) of messages."""
    if isinstance(cell, str | Mapping) or not hasattr(cell, "__len__") or len(cell) == 0:
        return False
    return all(isinstance(one, Mapping) and ("role" in one or "from" in one) for one in cell)


def _exchange(chat: Any, where: str, column: str) -> tuple[str, str]:
    """The question and the answer, either of them empty where the chat has none."""
    said = [(str(one.get("role") or one.get("from")), one.get("content", one.get("value"))) for one in chat]
    roles = ["asks" if role in _ASKS else "answers" if role in _ANSWERS else role for role, _ in said]
    if roles not in (["asks"], ["answers"], ["asks", "answers"]):
        raise ValueError(
            f"{where} is a chat of {', '.join(role for role, _ in said)}; a prompt set holds one question and its "
            "answer: cut longer chats, and leave out system messages (some commands have --system)"
        )
    texts = dict(zip(roles, (_text(text, where, column) for _, text in said), strict=True))
    return texts.get("asks", ""), texts.get("answers", "")
