"""What an output may take the place of: a file of its own kind that safecircuits wrote, and nothing else.

A mistyped name must not cost somebody a checkpoint, a paper or the record of a run. Every function that writes a file
under a name that it is given asks here first. (Folders have their own rule: see ``replacing_folder`` and run
directories.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Kind = Literal[
    "mask",
    "report",
    "figure",
    "completions",
    "AlpacaEval outputs",
    "fine-tuning run",
    "log",
    "model card",
    "checkpoint card",
]

PARAMETER_MASKS = "safecircuits.parameter_masks"
"""What the header of a converted mask calls it."""
GENERATOR = '<meta name="generator" content="safecircuits">'
"""In the head of every page."""
SOFTWARE = {"Software": "safecircuits"}
"""In the metadata of every figure that is a file of its own."""
CHECKPOINT_CARD = "<!-- written by safecircuits -->"
"""In the head of the card beside a checkpoint."""
CARD = "# The embedded models"
"""The first line of the card that is written beside models."""
_HEAD = 8192


def require_replaceable(path: str | Path, kind: Kind) -> Path:
    """``path``, if nothing is there, an empty file, or an earlier file of this kind.

    Raises:
        ValueError: if something else is there; says what to do.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return path
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file that can be replaced"
        raise ValueError(f"{str(path)!r} is {what}; name another file")
    if path.stat().st_size and not _is(kind, path):
        raise ValueError(f"{str(path)!r} is there already and is no {kind}; name another file, or remove it first")
    return path


def _is(kind: Kind, path: Path) -> bool:
    try:
        return _RULES[kind](path)
    except (OSError, ValueError, RecursionError):
        return False


def _is_mask(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError:
        return False
    return "safecircuits" in header or header.get("format") == PARAMETER_MASKS


def _head_has(text: str, start: bytes = b"") -> Callable[[Path], bool]:
    def rule(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        return head.startswith(start) and text.encode() in head

    return rule


def _lines_of(*keys: str) -> Callable[[Path], bool]:
    """JSON lines; the first is an object with these keys."""

    def rule(path: Path) -> bool:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
        return _has(first, keys)

    return rule


def _is_alpaca_eval(path: Path) -> bool:
    rows = _json(path)
    return isinstance(rows, list) and all(_has(row, ("instruction", "output", "generator")) for row in rows)


def _is_finetune_run(path: Path) -> bool:
    return _has(_json(path), ("losses", "evaluations", "n_frozen"))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _has(value: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys)


_RULES: dict[Kind, Callable[[Path], bool]] = {
    "mask": _is_mask,
    "report": _head_has(GENERATOR),
    "figure": _head_has(SOFTWARE["Software"], b"\x89PNG"),
    "completions": _lines_of("prompt", "completion"),
    "AlpacaEval outputs": _is_alpaca_eval,
    "fine-tuning run": _is_finetune_run,
    "log": _lines_of("step"),
    "model card": _head_has(CARD),
    "checkpoint card": _head_has(CHECKPOINT_CARD),
}
