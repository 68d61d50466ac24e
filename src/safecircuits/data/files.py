"""Tables of prompts from files: csv, tsv, json, jsonl, parquet, and text with one prompt a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from safecircuits.base.reading import parse_json, parse_lines
from safecircuits.prompts.cells import column_key
from safecircuits.prompts.shapes import columns_by_name, columns_of, table_in
from safecircuits.prompts.tables import KNOWN_COLUMNS, require_different


def read_file(path: Path) -> dict[str, list[Any]]:
    """The columns of a file of one of the kinds in ``READERS``; a ValueError that names it if it cannot be read."""
    if not path.is_file():
        raise ValueError(f"there is no prompt file {str(path)!r}")
    try:
        return READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read prompts from {str(path)!r}: save it as UTF-8 ({error})") from error
    except (json.JSONDecodeError, csv.Error, OSError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read prompts from {str(path)!r}: {error}") from error


def _read_delimited(path: Path, delimiter: str | None = None) -> dict[str, list[Any]]:
    rows = _rows(path, delimiter or ",")
    if delimiter is None and len(rows[0]) == 1:
        for other in _OTHER_DELIMITERS:
            split = _rows(path, other)
            widths = set(map(len, split[:-1]))
            if len(split[0]) > 1 and (KNOWN_COLUMNS & set(map(column_key, split[0])) or len(widths) == 1):
                rows = split
                break
    if rows.pop() != [_END]:
        raise ValueError(f"row {len(rows) + 1} of {str(path)!r} has a quotation mark that is never closed")
    if not rows:
        return {"prompt": []}
    header, width = rows[0], max(map(len, rows))
    if width == 1 and column_key(header[0]) not in KNOWN_COLUMNS:
        # One column without a name we know: a bare list, unless the first line is a single word among sentences.
        bare = len(header[0].split()) > 1 or len(rows) == 1
        return {"prompt": [row[0] for row in (rows if bare else rows[1:])]}
    uneven = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if uneven is not None:
        raise ValueError(
            f"row {uneven + 1} of {str(path)!r} has {len(rows[uneven])} fields, the header {len(header)}; "
            "a field with the delimiter in it must be in quotation marks"
        )
    names = [name.strip() for name in header]
    require_different([name for name in names if name], repr(str(path)))
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(names)}


def _rows(path: Path, delimiter: str) -> list[list[str]]:
    """The rows that are not blank, and then ``[_END]``, which a quotation mark that is never closed would swallow."""
    with path.open(newline="", encoding="utf-8-sig") as file, _cells_of_any_size():
        return [row for row in csv.reader(chain(file, [_END]), delimiter=delimiter) if any(map(str.strip, row))]


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """Python reads cells of at most 131,072 characters unless it is told otherwise, once for the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _lines(path: Path) -> list[str]:
    """The lines that are not blank; only a line feed ends one, since texts may hold the others that Unicode has."""
    return [line for line in _read_text(path).split("\n") if line.strip()]


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        data = parse_json(_read_text(path), _named(path))
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        return _read_jsonl(path)  # often called .json, too
    what = repr(str(path))
    if isinstance(data, dict) and data:
        return table_in(data, what)
    if not isinstance(data, list):
        raise ValueError(f'{what} holds neither a list of rows nor a table of columns: write [{{"prompt": …}}, …]')
    return columns_of(data, what)


def _named(path: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Makes an object; a ValueError for one that has a name twice, of which Python would keep the last."""

    def different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require_different([name for name, _ in pairs], f"an object in {str(path)!r}")
        return dict(pairs)

    return different


def _read_jsonl(path: Path) -> dict[str, list[Any]]:
    return columns_of(
        parse_lines(_read_text(path), f"cannot read prompts from {str(path)!r}: ", _named(path)), repr(str(path))
    )


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow has many kinds, which do not name the file
        raise ValueError(f"cannot read prompts from {str(path)!r}: {' '.join(str(error).split())}") from error
    return columns_by_name(frame, list(frame.columns), repr(str(path)))


def _read_lines(path: Path) -> dict[str, list[Any]]:
    return {"prompt": _lines(path)}


_OTHER_DELIMITERS = ";\t|"
"""Of csv files whose header no comma splits."""
_END = "\x00"

READERS: dict[str, Callable[[Path], dict[str, list[Any]]]] = {
    ".csv": _read_delimited,
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
}
