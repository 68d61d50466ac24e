"""Reading files that somebody else may have written: bounded in size and depth, and one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST = 2**29
"""Bytes of a file of data that is read at all: tables and results of the largest models stay far below."""


def require_size(path: str | Path, most: int = LARGEST) -> Path:
    """``path``, or a ValueError if its file is larger than ``most`` bytes."""
    path = Path(path)
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{str(path)!r} has {size} bytes; at most {most} are read")
    return path


def read_text(path: str | Path, most: int = LARGEST) -> str:
    """The text of a file.

    Raises:
        ValueError: if it is larger than ``most`` bytes, or not UTF-8.
        OSError: if it cannot be read.
    """
    try:
        return require_size(path, most).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8: {error}") from error


def parse_json(text: str, objects: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text; a JSONDecodeError also for one that is nested too deeply for Python to read.

    Args:
        objects: makes the value of an object from its names and values; a dict unless given.
    """
    try:
        return json.loads(text, object_pairs_hook=objects)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", text, 0) from error


def parse_lines(text: str, lead: str = "", objects: Callable[[list[tuple[str, Any]]], Any] | None = None) -> list[Any]:
    """The values of JSON lines, without the blank ones; only a line feed ends a line, since texts may hold others.

    Args:
        lead: what an error begins with, such as the name of the file.
        objects: as in ``parse_json``.

    Raises:
        ValueError: for a row that is no JSON; names it, and asks where it is the last whether the file was cut off.
    """
    lines = [line for line in text.removeprefix("\ufeff").split("\n") if line.strip()]
    found = []
    for row, line in enumerate(lines, 1):
        try:
            found.append(parse_json(line, objects))
        except json.JSONDecodeError as error:
            cut = "; it is the last: was the file cut off?" if row == len(lines) > 1 else ""
            raise ValueError(f"{lead}row {row} is no JSON ({error.msg}): {line[:60]!r}{cut}") from error
    return found


def read_json(path: str | Path, most: int = LARGEST) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: as ``read_text``, or if it is not JSON or is nested too deeply; names the file.
        OSError: if it cannot be read.
    """
    text = read_text(path, most)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not readable JSON: {error}") from error


def inside(folder: str | Path, name: str) -> Path:
    """``folder / name``, where ``name`` comes from a file or a caller.

    Raises:
        ValueError: if that lies outside the folder: an absolute name, one with ``..``, or a link that leads out.
    """
    root = Path(folder)
    path = root / name
    plain = isinstance(name, str) and name.strip(" ./\\") and "\0" not in name and not Path(name).is_absolute()
    if not plain or ".." in Path(name).parts or not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name!r} does not lie in {str(root)!r}; a name in a run is a relative path without '..'")
    return path


def printable(text: str) -> str:
    """``text`` for a terminal: control characters, with which a file could steer it, as ``\\x1b`` and the like."""
    return "".join(
        c if c in "\n\t" or c.isprintable() or (c.isspace() and ord(c) >= 160) else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
