"""The record of a run, ``run.json``, as it is read again: anybody may have written it, so its parts are checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safecircuits.base.reading import inside, read_json

FORMAT, VERSION = "safecircuits-run", 1
COMPLETE, PARTIAL = "run.json", "run.partial.json"
REPORT = "report.html"
PARTS = ("results", "tables", "figures")
LARGEST_RECORD = 2**25
"""Bytes: a record holds settings, names of files and findings."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in ``folder``, complete or not; None if there is none.

    Raises:
        ValueError: if it is no record, one of another version, or one with a part that no run has.
    """
    for name in (COMPLETE, PARTIAL):
        path = folder / name
        if not path.is_file():
            continue
        try:
            record = read_json(path, LARGEST_RECORD)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is not the record of a run: {error}") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"{str(path)!r} is not the record of a run")
        if record.get("version") != VERSION:
            raise ValueError(f"{str(path)!r} has version {record.get('version')}; this reads version {VERSION}")
        _require_parts(path, record)
        return record
    return None


def _require_parts(path: Path, record: dict[str, Any]) -> None:
    needed = {*_ALWAYS, *(_COMPLETE if "finished" in record else ())}
    if missing := sorted(needed - record.keys()):
        raise ValueError(f"{str(path)!r} is not the record of a run: it has no {missing[0]!r}")
    for key, (right, what) in _PARTS.items():
        if key in record and not right(record[key]):
            shown = repr(record[key])
            raise ValueError(f"{str(path)!r}: {key!r} is {what}, not {shown[:60]}{'…' if len(shown) > 60 else ''}")
    for name in (*record.get("files", ()), *filter(None, [record.get("main_table")])):
        inside(path.parent, name)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _figures(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(one, dict) and _texts(one.get("of")) and _text(one.get("shows")) for one in value.values()
    )


def _about(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("version"), str)


def _csv(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("tables/") and value.endswith(".csv")


def _exit(value: Any) -> bool:
    return value in (0, 1)


_ALWAYS = ("command", "arguments", "inputs", "started")
_COMPLETE = ("seconds", "files", "provenance")
_PARTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "command": (_text, "the words of a command"),
    "arguments": (_table, "a table of options"),
    "inputs": (_table, "a table of fingerprints"),
    "started": (_texts, "a list of times"),
    "finished": (_text, "a time"),
    "seconds": (_number, "a number"),
    "files": (_texts, "a list of names"),
    "figures": (_figures, "a table of what figures show"),
    "findings": (_texts, "a list of sentences"),
    "provenance": (_about, "a table with the version"),
    "main_table": (_csv, "the name of a table, tables/NAME.csv"),
    "failed": (_text, "a sentence"),
    "answer": (_table, "a table of what was found"),
    "exit": (_exit, "0 or 1"),
}
