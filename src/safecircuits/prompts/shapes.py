"""The shapes in which a value is a table: rows, columns, and what pandas writes as JSON or as a dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from safecircuits.prompts.cells import column_key, is_missing, plain
from safecircuits.prompts.tables import KNOWN_COLUMNS, require_different
from safecircuits.prompts.turns import ROLES, is_chat

Columns = dict[str, list[Any]]
_ROWS = '[{"prompt": …}, …]'


def columns_of(rows: list[Any], what: str) -> Columns:
    """The columns of rows that are objects, of chats, or of strings, which are prompts.

    Raises:
        ValueError: for rows of several kinds; for a chat where chats were expected.
    """
    if all(isinstance(row, str) for row in rows):
        return {"prompt": rows}
    if all(map(is_chat, rows)):
        return {"messages": rows}
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(
            f"cannot read prompts from {what}: every row must be an object with named fields, or every row a string"
        )
    _require_no_message(rows, what)
    named = [{str(name): cell for name, cell in row.items()} for row in rows]
    for before, after in zip(rows, named, strict=True):
        if len(after) < len(before):
            require_different(list(map(str, before)), f"a row of {what}")
    names = list(dict.fromkeys(name for row in named for name in row))
    return {name: whole_again([plain(row.get(name)) for row in named]) for name in names}


def _require_no_message(rows: list[Any], what: str) -> None:
    """A ValueError for rows that are the messages of one chat."""
    roles = [str(row.get("role", row.get("from"))).lower() for row in rows]
    if rows and all(role in ROLES for role in roles) and all("content" in row or "value" in row for row in rows):
        raise ValueError(f"{what} is one chat, a list of messages: pass a list of chats, [chat]")


def columns_by_name(table: Any, names: Iterable[Any], what: str) -> Columns:
    """The columns of a table that gives them by their names, which may be anything."""
    names = list(names)
    require_different(list(map(str, names)), what)
    return {str(name): whole_again([plain(cell) for cell in _cells(table[name], str(name), what)]) for name in names}


def _cells(column: Any, name: str, what: str) -> list[Any]:
    column = plain(column)
    if not _is_list(column):
        raise ValueError(f"column {name!r} of {what} is a {type(column).__name__}: a column is a list of cells")
    return list(column)


def whole_again(cells: list[Any]) -> list[Any]:
    """Whole numbers as such where pandas made them fractions, because others are missing beside them."""
    filled = [cell for cell in cells if not is_missing(cell)]
    if len(filled) == len(cells) or not all(type(cell) is float and cell.is_integer() for cell in filled):
        return cells
    return [None if is_missing(cell) else int(cell) for cell in cells]


def table_in(data: Mapping[Any, Any], what: str) -> Columns:
    """The columns of an object: columns, one row, rows beside what is said of them, or a frame as pandas writes it.

    Raises:
        ValueError: for what is none of these, and where rows and columns cannot be told apart.
    """
    if not data:
        return {}
    if {"columns", "data"} <= set(data) and _is_list(data["columns"]) and _is_list(data["data"]):
        return _split(data["columns"], data["data"], what)
    if set(data) == {"schema", "data"} and _is_list(data["data"]):  # orient="table"
        return columns_of(list(data["data"]), what)
    inner = [plain(part) for part in data.values()]
    if all(isinstance(part, Mapping) for part in inner):
        return _nested(data, what)
    lists = [name for name, part in zip(data, inner, strict=True) if _is_list(part)]
    if any(map(is_chat, inner)) or not lists:
        return columns_of([data], what)
    if len(lists) == 1 and _are_rows(data[lists[0]]) and not _any_known(lists):  # {"version": …, "data": [{…}, …]}
        return columns_of(data[lists[0]], what)
    if len(lists) < len(inner):
        raise ValueError(f"{what} holds neither a list of rows nor a table of columns: make it a list of rows, {_ROWS}")
    table = columns_by_name(data, data, what)
    if len({len(column) for column in table.values()}) > 1:
        lengths = ", ".join(f"{name!r} {len(column)}" for name, column in table.items())
        raise ValueError(f"the columns of {what} have different numbers of rows: {lengths}")
    return table


def _is_list(part: Any) -> bool:
    return hasattr(part, "__iter__") and not isinstance(part, str | bytes | Mapping | set | frozenset)


def _are_rows(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and all(isinstance(row, Mapping) for row in part)


def _split(names: Iterable[Any], rows: Iterable[Any], what: str) -> Columns:
    """``orient="split"``, with an index or without."""
    labels = [str(tuple(name) if isinstance(name, list) else name) for name in names]
    require_different(labels, what)
    rows = list(rows)
    for i, row in enumerate(rows, 1):
        if not isinstance(row, list | tuple) or len(row) != len(labels):
            has = f"has {len(row)} cells" if isinstance(row, list | tuple) else f"is {row!r}"
            raise ValueError(f"row {i} of {what} {has}, where there are {len(labels)} columns")
    return {name: whole_again([plain(row[k]) for row in rows]) for k, name in enumerate(labels)}


def _nested(data: Mapping[Any, Mapping[Any, Any]], what: str) -> Columns:
    """Objects in an object: ``orient="columns"``, or ``orient="index"``, told apart by names that are known.

    Where none is known, or some on both sides, labels that are numbers are those of rows.
    """
    inner = list(data.values())
    outside, inside = list(data), list(dict.fromkeys(label for part in inner for label in part))
    if not inside:
        return {str(name): [] for name in outside}
    columns = (_any_known(outside), _any_known(inside))
    if columns[0] == columns[1]:
        columns = (_numbered(inside), _numbered(outside))
    if columns[0] == columns[1]:
        raise ValueError(
            f"cannot tell which of {str(outside[0])!r} and {str(inside[0])!r} names a row of {what}, and which a "
            f"column: make it a list of rows, {_ROWS} (orient='records' of pandas)"
        )
    if columns[1]:  # orient="index"
        return columns_of(inner, what)
    if any(list(part) != inside for part in inner):
        raise ValueError(f"the columns of {what} do not have the same rows")
    return {str(name): whole_again([plain(cell) for cell in part.values()]) for name, part in data.items()}


def _any_known(names: Iterable[Any]) -> bool:
    return any(column_key(str(name)) in KNOWN_COLUMNS for name in names)


def _numbered(labels: Iterable[Any]) -> bool:
    return all(str(label).isdecimal() for label in labels)
