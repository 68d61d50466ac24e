"""The chats of a table, whole: from a column of messages, or from prompts and completions that are messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from safecircuits.base.notices import notify
from safecircuits.prompts.cells import is_missing, text_of
from safecircuits.prompts.chats import CHAT_COLUMNS, is_no_chat, parsed
from safecircuits.prompts.tables import PROMPT_COLUMNS, RESPONSE_COLUMNS, columns_named
from safecircuits.prompts.turns import Turn, is_chat, turns_of

Chats = list[tuple[Turn, ...]]


def chats_in(table: Mapping[str, list[Any]], column: str | None, label: str) -> Chats | None:
    """The chats of a table; None where it has none, or only plain exchanges, which are prompts with responses.

    A plain exchange is one question and its answer, without a system turn.
    """
    chats = whole_chats(table, column, label)
    if chats is None or all(_is_exchange(chat) for chat in chats):
        return None
    return chats


def whole_chats(table: Mapping[str, list[Any]], column: str | None, label: str) -> Chats | None:
    """The chats of a table; None where no column holds any.

    Chats without an answer are left out, with a notice. What stands in a column ``system`` is the system turn of chats
    that have none. Where ``prompt`` and ``completion`` are both messages, they are one chat, and the loss is on the
    completion alone (as in TRL).
    """
    for name in [column] if column is not None else _candidates(table):
        cells = parsed(table.get(name, ()), name, label)
        if any(map(is_chat, cells)):
            break
    else:
        return None
    completions = _completions(table, name, column, label)
    systems = next((table[one] for one in columns_named(table, ("system", "system_prompt")) if one != name), None)
    chats, lacking = [], 0
    for i, cell in enumerate(cells):
        where = f"row {i + 1} of {label!r}"
        if is_no_chat(cell, where, name):
            lacking += 1
            continue
        turns = turns_of(cell, where, name)
        if completions is not None:
            turns = tuple(replace(turn, trained=False) for turn in turns) + _completion(completions[i], where)
        if systems is not None and (system := text_of(systems[i], where, "system")).strip():
            if turns[0].role == "system" and turns[0].content.strip() != system.strip():
                raise ValueError(f"{where} has a system turn in its chat and another in the column of system prompts")
            turns = turns if turns[0].role == "system" else (Turn("system", system), *turns)
        if not any(turn.role == "assistant" for turn in turns):
            lacking += 1
            continue
        chats.append(turns)
    tools = [one for one in columns_named(table, ("tools",)) if not all(_is_empty(cell) for cell in table[one])]
    if tools and chats:
        notify(f"column {tools[0]!r} of {label!r} is not read: chats are put to the model without tools")
    if lacking and chats:
        have = "has no answer and is" if lacking == 1 else "have no answer and are"
        notify(f"{lacking} of the {len(cells)} chats of {label!r} {have} left out")
    return chats or None


def _is_empty(cell: Any) -> bool:
    return is_missing(cell) or (hasattr(cell, "__len__") and len(cell) == 0)


def _candidates(table: Mapping[str, list[Any]]) -> Sequence[str]:
    """Columns that may hold chats, unless the table has prompts and responses in columns of their own."""
    known = [name for name in PROMPT_COLUMNS if name not in CHAT_COLUMNS]
    prompts, chats = columns_named(table, known), columns_named(table, CHAT_COLUMNS)
    if prompts and columns_named(table, RESPONSE_COLUMNS):
        return prompts
    return [*chats, *prompts] or (list(table) if len(table) == 1 else [])


def _completions(table: Mapping[str, list[Any]], name: str, column: str | None, label: str) -> Sequence[Any] | None:
    """What goes on from the chats of a column; None if nothing does."""
    if column is not None or name in columns_named(table, CHAT_COLUMNS):
        return None
    beside = next((one for one in columns_named(table, RESPONSE_COLUMNS) if one != name), None)
    return None if beside is None else parsed(table[beside], beside, label)


def _completion(cell: Any, where: str) -> tuple[Turn, ...]:
    if is_chat(cell):
        return turns_of(cell, where, "completion")
    text = text_of(cell, where, "completion")
    return (Turn("assistant", text),) if text.strip() else ()


def _is_exchange(chat: Sequence[Turn]) -> bool:
    return [(turn.role, turn.trained) for turn in chat] in (
        [("user", True), ("assistant", True)],
        [("user", False), ("assistant", True)],
    )
