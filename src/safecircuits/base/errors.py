"""Errors that callers tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


class JudgingError(ValueError):
    """A detector or a judge failed on one completion; what was generated and judged until then is kept here.

    Attributes:
        index: of the prompt whose completion could not be judged.
        judged: what the detector or judge said of the completions before it.
        completions: ``Completions`` (or texts) that were being judged, complete; ``save`` them and judge them again.
        kept: what else the interrupted function had finished, by name.

    Examples:
        >>> def judge(text):
        ...     raise ConnectionError("judge unreachable")
        >>> try:
        ...     sc.refused(sc.generate(model, malicious), sc.JudgeDetector(judge))
        ... except sc.base.JudgingError as error:
        ...     print(error.index)
        0
    """

    def __init__(self, message: str, index: int, judged: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.index, self.judged = index, tuple(judged)
        self.completions: Any = None
        self.kept: dict[str, Any] = {}

    def renumber(self, index: int) -> None:
        """Name the completion by its place among all, where only some of them were judged."""
        self.args = (str(self).replace(f"completion {self.index}", f"completion {index}", 1),)
        self.index = index


@contextmanager
def keeping(finished: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """When a detector or a judge fails inside, its error takes along, as ``kept``, what was finished until then."""
    try:
        yield
    except JudgingError as error:
        error.kept.update(finished())
        raise
