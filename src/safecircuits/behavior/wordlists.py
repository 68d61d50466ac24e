"""What a language's list of refusal openings holds (``languages``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Openings:
    """Of one language."""

    refusals: tuple[str, ...]
    excuses: tuple[str, ...] = ()
    objections: tuple[str, ...] = ()
    judgements: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()
    """With which an answer goes on that a judgement began."""
