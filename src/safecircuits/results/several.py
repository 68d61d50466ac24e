"""A run directory of several processes: one writes it, and each of the others writes a copy that nobody keeps.

All begin from the same files, so that what an interrupted run left is there, or not there, for all of them alike.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safecircuits.base.processes import gather, is_main, of_main


class Opened(Protocol):
    """A run as ``RunDirectory.open`` gives it."""

    record: dict[str, Any]
    resumed: bool


R = TypeVar("R", bound=Opened)


def opened_together(
    folder: Path, open_here: Callable[[], R], of_copy: Callable[[Path, dict[str, Any], bool, Callable[[], Any]], R]
) -> R:
    """The run that process 0 opens; in the others one like it, in a temporary copy of its folder as it is now.

    Args:
        of_copy: the run in a copy: its folder, record, whether it was resumed, and what removes the copy.

    Raises:
        Exception: whatever ``open_here`` raises in process 0, in all of them.
    """
    mine: list[R] = []

    def opened() -> tuple[dict[str, Any], bool]:
        mine.append(open_here())
        return mine[0].record, mine[0].resumed

    record, resumed = of_main(opened)
    if not is_main():
        scratch = tempfile.TemporaryDirectory(prefix="safecircuits-")
        copy = Path(scratch.name) / folder.name
        shutil.copytree(folder, copy)
        mine.append(of_copy(copy, record, resumed, scratch.cleanup))
    gather(None)  # nothing is written before all have their copy
    return mine[0]
