"""Rates of refusal by category of prompts, in one form for everything that has answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from safecircuits.base.stats import Share
from safecircuits.behavior.verdict_table import Tally

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("set", "category", "refused", "low", "high", "hits", "n", "incoherent", "deflects", "undecided", "cut")


def category_frame(
    found: Iterable[tuple[Mapping[str, Any], Mapping[str, Mapping[str, Tally]]]], names: Iterable[str] = ()
) -> pd.DataFrame:
    """One row a set and category: the share ``refused`` with its 95 % interval, ``hits`` of ``n``, and the others.

    ``incoherent``, ``deflects``, ``undecided`` and ``cut`` are numbers of completions.

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


def _row(tally: Tally) -> dict[str, Any]:
    share: Share = tally.share("refuses")
    low, high = share.interval
    counts = {name: getattr(tally, name) for name in ("incoherent", "deflects", "undecided", "cut")}
    return {"refused": share.rate, "low": low, "high": high, "hits": share.hits, "n": share.n, **counts}
