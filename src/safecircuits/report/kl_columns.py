"""How far a changed model is from the intact one, as columns of a table of rates: KL of next tokens, in nats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from safecircuits.base.record import Record, number

KINDS = ("harmless", "malicious")
"""Of prompts on which it is measured (``Behavior.kl_means``)."""


def kl_headings(rows: Iterable[Record]) -> list[str]:
    """A column a kind of prompts, where any of the records knows of it."""
    return [f"KL to intact, {kind}: first / per token" for kind in _kinds(rows)]


def kl_cells(row: Record, rows: Iterable[Record]) -> list[str]:
    """The record under these headings: ``0.31 / 0.052``; a dash for what it does not know, as the intact one's."""
    return [
        " / ".join(_nats(row.get(f"{kind}_{name}_kl")) for name in ("first_token", "per_token"))
        for kind in _kinds(rows)
    ]


ORDINARY = "first-token KL, ordinary prompts"


def ordinary_kl(rows: Sequence[Record]) -> list[str]:
    """Of scaled models, in nats, where it was measured (``ordinary=``); empty where it was not."""
    key = "ordinary_first_token_kl"
    return [_nats(row.get(key)) for row in rows] if any(key in row for row in rows) else []


def _kinds(rows: Iterable[Record]) -> list[str]:
    known: set[str] = set().union(*rows)
    return [kind for kind in KINDS if f"{kind}_first_token_kl" in known]


def _nats(value: object) -> str:
    if value == math.inf:
        return "∞"
    found = number(value)
    return "–" if found is None else f"{found:.2g}"
