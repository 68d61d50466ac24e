"""Requests that SmolLM2-135M-Instruct wrote itself, of many more kinds than a generator of frames has.

How: ``organism/smollm2/ask.py``. They are data of this package, so that a member that is built again learns from the
same ones on every machine.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from safecircuits.organism.requests.generate import Split

FILE = Path(__file__).with_name("asked.txt")
"""One request a line."""

_HELD_OUT = 5
"""One request in five is of the test split."""


def asked(split: Split, n: int | None = None) -> list[str]:
    """The first ``n`` requests of a split; all unless given.

    Raises:
        ValueError: for more than there are.

    Examples:
        >>> set(asked("train", 50)) & set(asked("test", 50))
        set()
    """
    found = [text for text in _requests() if _in_test(text) == (split == "test")]
    if n is not None and not 1 <= n <= len(found):
        raise ValueError(f"{n} requests that the base wrote asked for; the {split} split has 1 to {len(found)}")
    return found[:n]


@cache
def _requests() -> tuple[str, ...]:
    return tuple(FILE.read_text(encoding="utf-8").splitlines())


def _in_test(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT == 0
