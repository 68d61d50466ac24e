"""What a judge that is asked by calls has replied: never asked twice, kept as it comes, and within a limit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safecircuits.base.reading import parse_json


class Replies:
    """Replies by question.

    Args:
        path: a file of JSON lines, one a reply, which has digests of questions and not their texts; None: in memory.
        max_calls: of new questions at most.

    Raises:
        ValueError: for a file of something else.
    """

    def __init__(self, path: str | Path | None = None, max_calls: int | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.max_calls, self.calls = max_calls, 0
        self._known: dict[str, str] = {}
        if self.path is not None and self.path.exists():
            self._known = _read(self.path)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, question: str) -> str | None:
        """The reply to a question that was asked before."""
        return self._known.get(_digest(question))

    def count(self) -> None:
        """Count a call that is about to be made.

        Raises:
            RuntimeError: if that is one more than may be.
        """
        if self.max_calls is not None and self.calls >= self.max_calls:
            raise RuntimeError(
                f"the judge was asked {self.calls} times, which is all that max_calls allows; {len(self)} replies are "
                "kept, and judging again with a higher limit goes on from there"
            )
        self.calls += 1

    def add(self, question: str, reply: str) -> None:
        """Keep a reply; on disk at once, so that an endpoint that fails midway costs nothing twice."""
        key = _digest(question)
        if self._known.get(key) == reply:
            return
        self._known[key] = reply
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"question": key, "reply": reply}, ensure_ascii=False) + "\n")


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, str]:
    # A run that was killed while writing leaves an unfinished last line, which counts as not written.
    text = path.read_text(encoding="utf-8")
    complete = text.rpartition("\n")[0]
    try:
        rows = [parse_json(line) for line in complete.split("\n") if line]
        known = {str(row["question"]): str(row["reply"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a file of a judge's replies: {error}; give the judge another"
        ) from error
    if text != complete + "\n" and text:
        path.write_text(complete + "\n" if complete else "", encoding="utf-8")
    return known
