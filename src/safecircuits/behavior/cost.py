"""What answers cost, said before and while they are written: tokens where a detector reads whole answers, then time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from safecircuits.base.log_lines import duration
from safecircuits.base.notices import notify
from safecircuits.base.progress import say

LONG = 30.0
"""Seconds still to come from which on the time is said."""


def notice_cost(answers: int, tokens: int, opening: int, detector: str) -> None:
    """Tell how many tokens a detector's own limit comes to, where that is more than the ``opening`` of an answer."""
    if tokens > opening:
        notify(
            f"{detector} reads whole answers: {answers} of up to {tokens} tokens are at most {answers * tokens:,} "
            f"tokens, {tokens / opening:.0f} times what a detector of openings needs; max_new_tokens "
            "(--max-new-tokens) sets another limit"
        )


def timed(finished: Iterable[int], total: int) -> Iterator[int]:
    """Numbers of finished answers as they come; after the first batch says how long the others take, if that is long.

    >>> sum(timed([3, 1], 4))
    4
    """
    began, told = time.monotonic(), False
    for n in finished:
        if not told and n < total:
            seconds = time.monotonic() - began
            left = seconds / n * (total - n)
            if left > LONG:
                say(f"{n} of {total} answers in {duration(seconds)}: about {duration(left)} for the others")
        told = True
        yield n
