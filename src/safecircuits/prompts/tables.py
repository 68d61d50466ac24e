"""What is in a table of prompts: which columns hold the prompts, their contexts, responses and categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from safecircuits.base.notices import notify
from safecircuits.prompts.cells import column_key, is_missing, text_of
from safecircuits.prompts.chats import CHAT_COLUMNS, read_cells

PROMPT_COLUMNS = (
    "instruction", "prompt", "question", "goal", "query", "text", "input", "behavior", "behaviour", *CHAT_COLUMNS,
)  # fmt: skip
CATEGORY_COLUMNS = ("category", "harm_category", "semantic_category", "risk_category", "harm_type")
RESPONSE_COLUMNS = ("output", "response", "answer", "target", "completion")
CONTEXT_COLUMNS = {
    "instruction": (("input", "context"), "{prompt}\n\n{context}"),
    "behavior": (("contextstring", "context"), "{context}\n\n---\n\n{prompt}"),
    "behaviour": (("contextstring", "context"), "{context}\n\n---\n\n{prompt}"),
}
"""What stands beside a prompt and belongs to it, and how the two are joined, by the prompt's column: a context behind
the instruction (Alpaca, Dolly), or before the behaviour, in the form that HarmBench's own code gives both."""


NO_CATEGORY = "none"
"""The category of prompts without one, beside others that have one."""


class Rows(NamedTuple):
    """What a table holds, as a ``PromptSet`` takes it."""

    prompts: tuple[str, ...]
    responses: tuple[str, ...] | None
    categories: tuple[str, ...] | None


def require_different(names: list[str], what: str) -> None:
    """A ValueError for columns of one name."""
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{what} has {names.count(twice[0])} columns named {twice[0]!r}; rename them")


KNOWN_COLUMNS = frozenset(map(column_key, (*PROMPT_COLUMNS, *RESPONSE_COLUMNS)))


def columns_named(table: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """The columns with one of these names, in the order of the names."""
    return [column for name in known for column in table if column_key(column) == column_key(name)]


def rows_where(table: dict[str, list[Any]], where: Mapping[str, Any], label: str) -> dict[str, list[Any]]:
    """The rows with these values; a ValueError that names what there is if no row has them."""
    for column, value in where.items():
        if column not in table and isinstance(value, str):
            # On the command line COLUMN=VALUE is split at the first sign, which may be part of the name.
            cuts = [i for i, sign in enumerate(value) if sign == "="]
            column, value = next(
                ((name, value[i + 1 :]) for i in cuts if (name := f"{column}={value[:i]}") in table), (column, value)
            )
        if column not in table:
            raise ValueError(f"{label!r} has no column {column!r}; columns: {', '.join(map(repr, table)) or 'none'}")
        keep = [str(entry) == str(value) for entry in table[column]]
        if not any(keep):
            values = list(dict.fromkeys(map(repr, table[column])))
            raise ValueError(f"no row of {label!r} has {column} {value!r}; there are {', '.join(values[:10])}")
        table = {
            name: [entry for entry, kept in zip(entries, keep, strict=True) if kept] for name, entries in table.items()
        }
    return table


def from_table(
    table: dict[str, list[Any]], column: str | None, responses: str | None, label: str, categories: str | None = None
) -> Rows:
    """The prompts of a table, with the responses and categories that stand beside them."""
    if not table:
        raise ValueError(f"{label!r} is empty: it has no columns")
    column, responses, categories = (None if name is None else str(name) for name in (column, responses, categories))
    column = column or _prompt_column(table, label)
    if column not in table:
        raise ValueError(f"{label!r} has no column {column!r}; columns: {', '.join(map(repr, table))}")
    table = _filled(table, label)
    prompts, replies = read_cells(table[column], column, label)
    answers = _answers(table, column, responses, replies, label)
    prompts = _with_context(prompts, table, column, label)
    kinds = _categories(table, column, categories, label)
    if answers is None:
        return Rows(tuple(prompts), None, kinds)
    return _answered(prompts, answers, label, kinds)


def _prompt_column(table: dict[str, list[Any]], label: str) -> str:
    """The column with the prompts, by its name or because it is the only one."""
    guess = columns_named(table, PROMPT_COLUMNS)
    alike = [name for name in guess[1:] if column_key(name) == column_key(guess[0])]
    if any(table[name] != table[guess[0]] for name in alike):
        both = ", ".join(map(repr, (guess[0], *alike)))
        raise ValueError(
            f"{label!r} has the columns {both}: name the one that holds the prompts (column=, or --column)"
        )
    if guess:
        return guess[0]
    if len(table) == 1 and not columns_named(table, RESPONSE_COLUMNS):
        return next(iter(table))
    raise ValueError(
        f"cannot tell which column of {label!r} holds the prompts: name it; columns: {', '.join(map(repr, table))} "
        "(column=, or --column)"
    )


def _categories(table: dict[str, list[Any]], column: str, named: str | None, label: str) -> tuple[str, ...] | None:
    """Each row's category as text; None if no column holds them."""
    if named == "":
        return None
    if named is not None and named not in table:
        has = ", ".join(map(repr, table)) or "none"
        raise ValueError(f"{label!r} has no column {named!r} for the categories; columns: {has}")
    guess = named or next((name for name in columns_named(table, CATEGORY_COLUMNS) if name != column), None)
    if guess is None:
        return None
    try:
        cells = [text_of(cell, f"row {i} of {label!r}", guess).strip() for i, cell in enumerate(table[guess], 1)]
    except ValueError as error:
        if named is not None:
            raise
        notify(f"the categories of {label!r} are not read: {error}")
        return None
    if lacking := cells.count(""):
        if lacking == len(cells) and named is None:
            return None
        notify(
            f"{lacking} of the {len(cells)} rows of {label!r} have nothing in their column {guess!r} and are of the "
            f"category {NO_CATEGORY!r}"
        )
    return tuple(cell or NO_CATEGORY for cell in cells)


def _with_context(prompts: list[str], table: dict[str, list[Any]], column: str, label: str) -> list[str]:
    """The prompts with what stands beside them in a column of its own."""
    joined = {column_key(known): how for known, how in CONTEXT_COLUMNS.items()}
    names, form = joined.get(column_key(column), ((), "{prompt}"))
    beside = next((name for name in columns_named(table, names) if name != column), None)
    if beside is None:
        unread = [name for name in columns_named(table, ("context", "contextstring")) if name != column]
        filled = [name for name in unread if not all(map(is_missing, table[name]))]
        if filled:
            notify(f"column {filled[0]!r} of {label!r} is not read: the prompts are column {column!r} alone")
        return prompts
    contexts, _ = read_cells(table[beside], beside, label)
    return [
        form.format(prompt=prompt, context=context) if context.strip() else prompt
        for prompt, context in zip(prompts, contexts, strict=True)
    ]


def _answers(
    table: dict[str, list[Any]], column: str, responses: str | None, replies: list[str] | None, label: str
) -> list[str] | None:
    """The texts in the column of the responses, or else the replies of the chats in ``column``; None for none."""
    if responses == "":
        return None
    if responses is not None and responses not in table:
        has = ", ".join(map(repr, table)) or "none"
        raise ValueError(f"{label!r} has no column {responses!r} for the responses; columns: {has}")
    guess = [name for name in columns_named(table, RESPONSE_COLUMNS) if name != column]
    answers = replies
    if name := responses or next(iter(guess), None):
        texts, inside = read_cells(table[name], name, label)
        answers = inside or texts
    if answers is None or any(map(str.strip, answers)):
        return answers
    if responses is None:
        return None
    raise ValueError(f"column {responses!r} of {label!r} has no response in any row")


def _filled(table: dict[str, list[Any]], label: str) -> dict[str, list[Any]]:
    """The table without rows in which every cell is empty, as spreadsheets leave them at the end."""
    keep = [not all(map(is_missing, row)) for row in zip(*table.values(), strict=True)]
    last = max((row for row, kept in enumerate(keep) if kept), default=0)
    if empty := keep[:last].count(False):
        first = keep.index(False) + 1
        said = "is empty and left out: it is" if empty == 1 else "are empty and left out: the first is"
        notify(f"{empty} of the {len(keep)} rows of {label!r} {said} row {first}")
    return {name: [cell for cell, kept in zip(cells, keep, strict=True) if kept] for name, cells in table.items()}


def _answered(prompts: list[str], answers: list[str], label: str, kinds: tuple[str, ...] | None) -> Rows:
    """The rows that have a response; a notice about the others."""
    rows = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer.strip()]
    if kinds is not None:
        kinds = tuple(kind for kind, answer in zip(kinds, answers, strict=True) if answer.strip())
    if lacking := len(prompts) - len(rows):
        first = next(prompt for prompt, answer in zip(prompts, answers, strict=True) if not answer.strip())
        notify(
            f"{lacking} of the {len(prompts)} rows of {label!r} {'has' if lacking == 1 else 'have'} no response and "
            f"{'is' if lacking == 1 else 'are'} left out: {first[:60]!r}{', …' if lacking > 1 else ''}"
        )
    return Rows(tuple(prompt for prompt, _ in rows), tuple(answer for _, answer in rows), kinds)
