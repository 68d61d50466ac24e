"""What an earlier run left in a folder: how it differs from the one that is wanted, and how it is cleared away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safecircuits.base.files import is_partial, remove_partials
from safecircuits.results.run_record import COMPLETE, PARTIAL, PARTS, REPORT


def cannot_write(folder: Path, error: OSError) -> ValueError:
    """The error for a folder in which nothing can be written."""
    return ValueError(f"cannot write to {str(folder)!r} ({error.strerror}); give --out a folder that can be written to")


def is_begun_record(path: Path) -> bool:
    """Whether it is the record of a run that was killed before the record was whole."""
    return path.name.startswith(f".{PARTIAL}.") and is_partial(path.name) and path.is_file()


def clear_away_work(folder: Path) -> None:
    """Remove what a complete run has no need of any more: what it would have gone on from."""
    shutil.rmtree(folder / "work", ignore_errors=True)
    remove_partials(folder)
    (folder / PARTIAL).unlink(missing_ok=True)


def remove_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Everything a run wrote, and nothing else; its record goes last."""
    for name in ("work", *PARTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in [*record.get("files", []), REPORT, COMPLETE, PARTIAL]:  # names that lie inside, see run_record
        if (folder / name).is_file():
            (folder / name).unlink()


def differences(earlier: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs, in words: the command if it is another, else its arguments, else what they name has changed."""
    if earlier["command"] != wanted["command"]:
        return [f"it is of {earlier['command']!r}, not {wanted['command']!r}"]

    def changed(part: str) -> list[tuple[str, Any, Any]]:
        old, new = earlier[part], wanted[part]
        return [(k, old.get(k), new.get(k)) for k in dict.fromkeys((*old, *new)) if old.get(k) != new.get(k)]

    if differs := changed("arguments"):
        return [f"--{key.replace('_', '-')} was {_short(old)}, is {_short(new)}" for key, old, new in differs]
    return [f"the contents of {key} have changed since" for key, _, _ in changed("inputs")]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
