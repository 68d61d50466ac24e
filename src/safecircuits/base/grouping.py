"""Rows of a list by what they are."""

from __future__ import annotations

from collections.abc import Sequence


def rows_by(kinds: Sequence[str] | None) -> dict[str, list[int]]:
    """The rows of each kind, in the order in which kinds first occur; none of None.

    Examples:
        >>> from safecircuits.base.grouping import rows_by
        >>> rows_by(["theft", "fraud", "theft"])
        {'theft': [0, 2], 'fraud': [1]}
    """
    rows: dict[str, list[int]] = {}
    for row, kind in enumerate(kinds or ()):
        rows.setdefault(kind, []).append(row)
    return rows
