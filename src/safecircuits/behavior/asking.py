"""A judge is asked one question after another: what fails names its completion, and nothing is asked for twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from safecircuits.base.errors import JudgingError
from safecircuits.base.notices import notify
from safecircuits.behavior.replies import Replies

T = TypeVar("T")


class UnreadableReply(ValueError):
    """A judge's reply that is not in the format it was asked for."""


def ask_each(
    asked: Sequence[tuple[str, Callable[[], str]]],
    read: Callable[[str], T],
    replies: Replies,
    unreadable: Literal["error", "undecided"] = "error",
) -> list[tuple[str, T | None]]:
    """Each question's reply and what it says; None for one that cannot be read, if such are undecided.

    Args:
        asked: questions as text, by which replies are kept, and how each is asked.
        read: what a reply says; raises ``UnreadableReply``.
        replies: those there are, to which the new ones are added. One that cannot be read stays out if it is an error:
            another try may do better.

    Raises:
        JudgingError: a ValueError, if the judge raises or a reply is an error; names the completion.
    """
    said: list[tuple[str, T | None]] = []
    for i, (question, ask) in enumerate(asked):
        try:
            reply = replies.get(question)
            if reply is None or (unreadable == "error" and _read(reply, read, "undecided") is None):
                replies.count()
                reply = str(ask())
            said.append((reply, _read(reply, read, unreadable)))
        except Exception as error:
            message = f"the judge failed on completion {i}: {type(error).__name__}: {error}"
            raise JudgingError(message, i, [before for before, _ in said]) from error
        replies.add(question, reply)
    tell_unreadable([reply for reply, one in said if one is None], len(said))
    return said


def _read(reply: str, read: Callable[[str], T], unreadable: Literal["error", "undecided"]) -> T | None:
    try:
        return read(reply)
    except UnreadableReply:
        if unreadable == "error":
            raise
        return None


def tell_unreadable(unread: Sequence[str], n: int) -> None:
    """One notice of replies that could not be read."""
    if unread:
        notify(
            f"{len(unread)} of the judge's {n} replies are in another format than it was asked for, and their "
            f"completions undecided; the first begins {unread[0][:80]!r}"
        )
