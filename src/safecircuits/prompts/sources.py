"""Tables as people hold them: frames of pandas, data sets, tables of Arrow, mappings of columns, rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safecircuits.prompts.cells import column_key
from safecircuits.prompts.shapes import Columns, columns_by_name, columns_of, table_in
from safecircuits.prompts.tables import KNOWN_COLUMNS
from safecircuits.prompts.turns import is_chat


def listed(source: Any) -> Any:
    """What can be read but once as a list; anything else as it is."""
    if hasattr(source, "readline"):
        raise ValueError(f"cannot read prompts from a {type(source).__name__}, an open file: pass its path")
    return list(source) if isinstance(source, Iterator) else source


def table_of(source: Any) -> Columns | None:
    """The columns of a table; None for a list, an array or one column of prompts."""
    kind = type(source).__name__
    if isinstance(source, set | frozenset):
        raise ValueError("a set has no order, so that prompts would change from run to run: pass sorted(prompts)")
    readable = hasattr(source, "__iter__") or hasattr(source, "to_pydict")
    if isinstance(source, type | bytes | bytearray) or not readable or getattr(source, "ndim", 1) == 0:
        raise ValueError(
            f"cannot read prompts from a {kind}: pass a file, the id of a data set, a table, a list of strings or a "
            "PromptSet"
        )
    if hasattr(source, "questions"):
        raise ValueError(f"a {kind} holds whole chats: pass what users say in them, chats.questions()")
    features = getattr(source, "features", None)
    table = _columns(source, f"the {kind}")
    if table is None or not isinstance(features, Mapping):
        return table
    return {name: _labels(cells, features.get(name)) for name, cells in table.items()}


def _columns(source: Any, what: str) -> Columns | None:
    if hasattr(source, "to_pydict"):  # of Arrow
        return columns_by_name(source.to_pydict(), source.schema.names, what)
    if isinstance(source, Mapping):
        return table_in(source, what)
    if hasattr(source, "column_names") and hasattr(source, "__len__"):  # of ``datasets``, in the format that it has
        return _columns(source[:], what)
    names = getattr(source, "columns", None)
    if names is None:
        names = getattr(getattr(source, "dtype", None), "names", None)  # of an array of records
    if names is not None and hasattr(source, "__getitem__"):
        return columns_by_name(source, names, what) | _of_index(source)
    rows = [row._asdict() if hasattr(row, "_asdict") else row for row in source]
    if rows and (all(isinstance(row, Mapping) for row in rows) or all(map(is_chat, rows))):
        return columns_of(rows, "the list of rows")
    return None


def _of_index(source: Any) -> Columns:
    """What stands in a frame's index by a name that is known, and in no column of that name."""
    index: Any = getattr(source, "index", None)
    names = [name for name in getattr(index, "names", ()) if column_key(str(name)) in KNOWN_COLUMNS]
    return {str(name): index.get_level_values(name).tolist() for name in names if name not in source.columns}


def _labels(cells: list[Any], feature: Any) -> list[Any]:
    """The names of classes, where a data set has numbers for them."""
    if not hasattr(feature, "int2str"):
        return cells
    return [feature.int2str(cell) if isinstance(cell, int) and cell >= 0 else None for cell in cells]


def split_of(source: Any, split: str | None) -> Any:
    """One split of several that come together, as ``datasets`` gives them; anything else as it is.

    Raises:
        ValueError: if there are several and none is named, or it is not there; and if what has no splits is asked for
            one.
    """
    several = isinstance(source, Mapping) and bool(source)
    if not several or not all(hasattr(part, "column_names") or hasattr(part, "columns") for part in source.values()):
        if split is not None and str(getattr(source, "split", None)) != split:
            raise ValueError(f"a {type(source).__name__} has no split {split!r}: leave split= out")
        return source
    if split is None and len(source) == 1:
        return next(iter(source.values()))
    if split not in source:
        given = "give split=, or one of them" if split is None else f"there is no split {split!r}"
        raise ValueError(f"a {type(source).__name__} holds the splits {', '.join(map(repr, source))}: {given}")
    return source[split]
