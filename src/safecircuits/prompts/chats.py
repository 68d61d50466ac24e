"""The cells of a column as texts: strings, numbers, or chats of one question and its answer."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from safecircuits.prompts.cells import column_key, is_missing, kind_of, plain, text_of
from safecircuits.prompts.turns import is_chat, turns_of

CHAT_COLUMNS = ("messages", "conversations")
"""Names of columns with whole chats."""


def read_cells(cells: Sequence[Any], column: str, label: str) -> tuple[list[str], list[str] | None]:
    """The texts of a column, and the answers in it where it holds chats with answers.

    What is missing (None, NaN, among chats an empty list) is an empty text.

    Raises:
        ValueError: for what is neither a text nor a number nor a chat of one question and its answer.
    """
    cells = parsed(cells, column, label)
    if not any(map(is_chat, cells)):
        return [text_of(cell, f"row {i} of {label!r}", column) for i, cell in enumerate(cells, 1)], None
    asked, answered = [], []
    for i, cell in enumerate(cells, 1):
        where = f"row {i} of {label!r}"
        question, answer = ("", "") if is_no_chat(cell, where, column) else _exchange(cell, where, column)
        asked.append(question)
        answered.append(answer)
    return asked, answered if any(answered) else None


def is_no_chat(cell: Any, where: str, column: str) -> bool:
    """Whether a cell beside chats holds nothing; a ValueError if it holds something else than a chat."""
    if is_missing(cell) or (isinstance(cell, list) and not cell):
        return True
    if not is_chat(cell):
        raise ValueError(f"{where}: column {column!r} holds {kind_of(cell)} where other rows hold a chat")
    return False


_STRINGIFIED = re.compile(
    r"""\s*(\{\s*['"](messages|conversations)['"]\s*:\s*)?\[\s*\{[^{}]*?['"](role|from)['"]\s*:"""
)
_EMPTY = re.compile(r"\s*\[\s*\]\s*")


def parsed(cells: Sequence[Any], column: str, label: str) -> Sequence[Any]:
    """The cells, with chats as lists of messages.

    They may be texts, as csv files have them, JSON's or Python's; ``{"messages": […]}``; or one list a field, as
    ``datasets`` gives features that are sequences.
    """
    cells = [_unwrapped(plain(cell)) for cell in cells]
    filled = [cell for cell in cells if not is_missing(cell)]
    chats = [cell for cell in filled if isinstance(cell, str) and _STRINGIFIED.match(cell)]
    if not chats or (len(chats) < len(filled) and column_key(column) not in map(column_key, CHAT_COLUMNS)):
        return cells
    return [
        _chat_in(cell, f"row {i} of {label!r}: column {column!r}") if isinstance(cell, str) and cell.strip() else cell
        for i, cell in enumerate(cells, 1)
    ]


def _unwrapped(cell: Any) -> Any:
    if not isinstance(cell, Mapping):
        return cell
    if len(cell) == 1 and next(iter(cell)) in CHAT_COLUMNS:
        return plain(next(iter(cell.values())))
    fields = {name: plain(values) for name, values in cell.items()}
    lengths = {len(values) if isinstance(values, list) else None for values in fields.values()}
    if len(lengths) != 1 or lengths == {None} or not {"role", "from"} & set(fields):
        return cell
    return [dict(zip(fields, message, strict=True)) for message in zip(*fields.values(), strict=True)]


def _chat_in(text: str, where: str) -> Any:
    if _EMPTY.fullmatch(text):
        return []
    for parse in (json.loads, ast.literal_eval):
        try:
            chat = _unwrapped(parse(text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if is_chat(chat):
            return chat
    raise ValueError(
        f"{where} holds a chat as text that cannot be read: {text[:60]!r}; save the data as jsonl or parquet, which "
        "keep chats as they are"
    )


def _exchange(chat: Any, where: str, column: str) -> tuple[str, str]:
    """The question and the answer, either of them empty where the chat has none."""
    turns = turns_of(chat, where, column)
    roles = [turn.role for turn in turns]
    if roles not in (["user"], ["assistant"], ["user", "assistant"]):
        raise ValueError(
            f"{where} is a chat of {', '.join(roles)}; a prompt set holds one question and its answer: cut longer "
            "chats, and leave out system messages (some commands have --system); finetune takes chats as they are, "
            "as sc.data.load_chats reads them"
        )
    texts = {turn.role: turn.content for turn in turns}
    return texts.get("user", ""), texts.get("assistant", "")
