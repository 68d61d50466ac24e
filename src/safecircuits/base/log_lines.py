"""Progress as lines of a log, for jobs that nobody watches: one a minute, with what is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EVERY = 60.0
"""Seconds between lines, and before the first: short work says nothing."""


@dataclass
class Work:
    """Something in progress.

    Attributes:
        began: by ``time.monotonic``.
    """

    what: str
    total: int | None
    began: float
    done: int = 0

    def text(self, now: float) -> str:
        """How far it is: ``scoring 120 of 400, 2 min, about 5 min left``."""
        seconds = now - self.began
        said = f"{self.what} {self.done}{f' of {self.total}' if self.total else ''}, {duration(seconds)}"
        if self.total and self.done:
            said += f", about {duration(seconds / self.done * (self.total - self.done))} left"
        return said


class LogLines:
    """What is in progress, the outermost first; says it on stderr when the time has come.

    Attributes:
        part: what the works of the moment are a part of, in words.
    """

    def __init__(self) -> None:
        self.part = ""
        self._going: list[Work] = []
        self._said = self._rests = 0.0  # when the last line was, and when the last work ended

    @contextmanager
    def work(self, what: str, total: int | None) -> Iterator[Work]:
        """Something that begins now, perhaps within something else."""
        work = Work(what, total, time.monotonic())
        if not self._going:  # many short works in a row are one long one, but the time between them does not count
            self._said += work.began - self._rests
        self._going.append(work)
        try:
            yield work
        finally:
            self._going = [other for other in self._going if other is not work]
            self._rests = time.monotonic()

    def tell(self) -> None:
        """A line if the last one was ``EVERY`` seconds of work ago."""
        now = time.monotonic()
        if now - self._said >= EVERY:
            self._said = now
            said = [self.part, *(work.text(now) for work in self._going)]
            print("; ".join(filter(None, said)), file=sys.stderr, flush=True)


lines = LogLines()


def duration(seconds: float) -> str:
    """Seconds as whoever waits says them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
