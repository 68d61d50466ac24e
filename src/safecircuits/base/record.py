"""What figures and tables are made from: plain records of arrays and numbers.

A result has ``record()``; whatever draws takes such a record, or something that has one, and knows no result classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import pandas as pd

Record: TypeAlias = Mapping[str, Any]
"""Plain data: numbers, strings, lists or arrays, and further records by name."""


class Recorded(Protocol):
    """Anything that gives its numbers as a record."""

    def record(self) -> Record: ...


class _Located(Protocol):
    @property
    def layers(self) -> Iterable[int]: ...


Block: TypeAlias = "Iterable[int] | _Located"
"""A block of layers, 0-indexed and inclusive: a pair, a ``LayerRange``, or what was found with its ``layers``."""

RATES = ("malicious_refused", "over_rejected", "normal_refused", "utility", "new_task")


def record_of(value: Recorded | Record) -> Record:
    """The record of ``value``, which may be one already."""
    return value if isinstance(value, Mapping) else value.record()


def records_of(named: Mapping[str, Recorded | Record]) -> dict[str, Record]:
    """The record of each, by name."""
    return {name: record_of(value) for name, value in named.items()}


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a data frame as records."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def gap_degrees(gap: Recorded | Record | Sequence[float]) -> list[float]:
    """Angle gap of each layer, degrees."""
    values: Any = gap if isinstance(gap, Sequence) else record_of(gap)["gap_deg"]
    return [float(g) for g in values]


def pair_statistics(gap: Recorded | Record) -> dict[str, list[float]]:
    """``nn_mean``, ``nn_std``, ``mm_mean`` … of each layer, those that are there."""
    record = record_of(gap)
    keys = [f"{kind}_{what}" for kind in ("nn", "mm", "nm") for what in ("mean", "std")]
    return {key: [float(v) for v in record[key]] for key in keys if key in record}


def bounds(block: Block | None) -> tuple[int, int] | None:
    """First and last layer of a block, whichever way it is given."""
    if block is None:
        return None
    pair: Any = getattr(block, "layers", block)
    first, last = pair
    return int(first), int(last)


def ablations(table: Recorded | Record) -> tuple[dict[str, Record], dict[str, Record]]:
    """What is left without each group, and without as many random units (means over draws); by group."""
    groups = {name: row for name, row in record_of(table).items() if isinstance(row, Mapping)}
    return groups, {name: row["random"] for name, row in groups.items() if "random" in row}


def curve(points: Mapping[int, Recorded | Record] | Sequence[Record]) -> list[Record]:
    """Points of an ablation curve by ascending number of removed units."""
    if isinstance(points, Mapping):
        rows: list[Record] = [{"removed": removed, **record_of(behavior)} for removed, behavior in points.items()]
    else:
        rows = list(points)
    return sorted(rows, key=lambda row: int(row["removed"]))


def arms(finetune: Record) -> dict[str, Record]:
    """The arms of a fine-tuning comparison: every record in it that has a refusal rate, but for ``before``."""
    return {
        name: row
        for name, row in finetune.items()
        if name != "before" and isinstance(row, Mapping) and number(row.get("malicious_refused")) is not None
    }


def number(value: Any) -> float | None:
    """``value`` as a finite float, or None if it is missing, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def interval(row: Record, name: str) -> tuple[float, float] | None:
    """``<name>_interval`` of a record, if it is there and finite."""
    pair = row.get(f"{name}_interval")
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return None
    low, high = number(pair[0]), number(pair[1])
    return None if low is None or high is None else (low, high)
