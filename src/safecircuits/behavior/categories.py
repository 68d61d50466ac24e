"""Rates of refusal by category of prompts, in one form for everything that has answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.stats import Share
from safecircuits.behavior.verdict_table import BESIDE, Tally

if TYPE_CHECKING:
    import pandas as pd

Counted = Tally | Share
"""The answers to prompts of a category: what they are, or the share refused alone where no more is known."""

COUNTS = ("complies", *BESIDE)
COLUMNS = ("set", "category", "refused", "low", "high", "hits", "n", *COUNTS)


def category_frame(
    found: Iterable[tuple[Mapping[str, Any], Mapping[str, Mapping[str, Counted]]]], names: Iterable[str] = ()
) -> pd.DataFrame:
    """One row a set and category: the share ``refused`` with its 95 % interval, ``hits`` of ``n``, and the others.

    ``complies``, ``incoherent``, ``deflects``, ``undecided`` and ``cut`` are numbers of completions, missing where not
    known.

    Args:
        found: what a measurement is called, by column, and its tallies by set and category; empty without categories.
        names: of these columns, for a frame without rows.
    """
    import pandas as pd

    rows = [
        {**of, "set": name, "category": category, **_row(tally)}
        for of, sets in found
        for name, tallies in sets.items()
        for category, tally in tallies.items()
    ]
    return pd.DataFrame(rows, columns=None if rows else [*names, *COLUMNS])


def refused_by_category(
    refused: Bool[Tensor, " prompt"], categories: Sequence[str] | None, tallies: Mapping[str, Tally]
) -> dict[str, Counted]:
    """By category of the prompts, in the order in which they first occur: the tally, or the share refused.

    Args:
        tallies: those that are known, by category.
    """
    kinds = categories or ()
    return {
        kind: tallies.get(kind) or Share.of(refused[[one == kind for one in kinds]]) for kind in dict.fromkeys(kinds)
    }


def sum_of(found: Iterable[Mapping[str, Mapping[str, Tally]]]) -> dict[str, dict[str, Tally]]:
    """Tallies of several measurements of the same sets, counted together; cut is known where it is of all of them."""
    whole: dict[str, dict[str, Tally]] = {}
    for sets in found:
        for name, tallies in sets.items():
            before = whole.setdefault(name, {})
            for category, tally in tallies.items():
                before[category] = _sum(before[category], tally) if category in before else tally
    return whole


def _sum(one: Tally, other: Tally) -> Tally:
    counts: dict[str, Any] = {
        field.name: None if None in (both := (getattr(one, field.name), getattr(other, field.name))) else sum(both)
        for field in fields(Tally)
    }
    return Tally(**counts)


def _row(found: Counted) -> dict[str, Any]:
    share = found if isinstance(found, Share) else found.share("refuses")
    low, high = share.interval
    counts = {name: getattr(found, name, None) for name in COUNTS}
    return {"refused": share.rate, "low": low, "high": high, "hits": share.hits, "n": share.n, **counts}
