"""The results that a complete run directory holds, by name: what a study is put together from again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from safecircuits.base.reading import inside
from safecircuits.results.result import Result

R = TypeVar("R", bound=Result)


class Kept:
    """The results in a run's folder. One that is there and cannot be read is a ValueError."""

    def __init__(self, run: str | Path) -> None:
        self.folder = Path(run) / "results"

    def must(self, name: str, kind: type[R]) -> R:
        """A part that every study has; a ValueError if it is missing."""
        return kind.load(inside(self.folder, name))

    def maybe(self, name: str, kind: type[R]) -> R | None:
        """A part that a study may leave out."""
        return self.must(name, kind) if (self.folder / name).is_dir() else None

    def those(self, start: str, ends: Iterable[str], kind: type[R]) -> dict[str, R]:
        """By the end of their names, those that are there."""
        found = {end: self.maybe(start + end, kind) for end in ends}
        return {end: one for end, one in found.items() if one is not None}
