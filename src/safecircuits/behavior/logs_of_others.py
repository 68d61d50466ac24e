"""Rows of completions in logs that others wrote, in one form: what is known of each answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from safecircuits.base.notices import notify
from safecircuits.prompts.cells import column_key, is_missing
from safecircuits.prompts.tables import CATEGORY_COLUMNS, NO_CATEGORY

Row = dict[str, Any]
"""``prompt``, ``completion``, and where they are known ``ended``, ``tokens``, ``category``: as runs keep them."""


def usual(table: Mapping[str, Any], known: Iterable[str]) -> Any:
    """What stands in the first field of a usual name, if anything does."""
    by_key = {column_key(str(name)): value for name, value in reversed(list(table.items())) if not is_missing(value)}
    return next((by_key[key] for name in known if (key := column_key(name)) in by_key), None)


def category_in(about: Any) -> Row:
    """The category that a log names of a question, if it names one by a usual name."""
    found = usual(about, CATEGORY_COLUMNS) if isinstance(about, Mapping) else None
    return {"category": str(found)} if isinstance(found, str | int) else {}


def known(rows: list[Row]) -> list[Row]:
    """Rows with what is known of all of them; categories are ``"none"`` where only others have one."""
    if (lacking := sum("category" not in row for row in rows)) and lacking < len(rows):
        notify(f"{lacking} of the {len(rows)} answers have no category and are of the category {NO_CATEGORY!r}")
        rows = [{"category": NO_CATEGORY} | row for row in rows]
    return [{name: value for name, value in row.items() if all(name in other for other in rows)} for row in rows]


def left_out(lacking: int, n: int, what: str) -> None:
    """A notice that some have no answer."""
    if lacking:
        is_left = "is" if lacking == 1 else "are"
        notify(f"{lacking} of the {n} {what} failed or lack an answer, and {is_left} left out")
