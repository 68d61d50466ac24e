"""Numbers as words: one way to write rates, ranges and counts, in figures and in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from safecircuits.base.record import Record, bounds, interval, number

NBSP = "\u00a0"


def percent(rate: float | None) -> str:
    """A rate between 0 and 1 in percent, one decimal where it says something: ``98.3 %``, ``0 %``; – if missing."""
    if rate is None:
        return "–"
    return f"{round(100 * rate, 1):g}{NBSP}%"


def rate_with_interval(row: Record, name: str) -> str:
    """``56.2 % [50.1, 62.3]``; the interval is left out if there is none."""
    text = percent(number(row.get(name)))
    if spread := interval(row, name):
        text += f" [{100 * spread[0]:.1f}, {100 * spread[1]:.1f}]"
    return text


def points(mean: float, low: float, high: float) -> str:
    """A difference of rates in points: ``+3.1 [−0.4, +6.6]``; the interval is left out if there is none."""
    text = f"{100 * mean:+.1f}"
    if not math.isnan(low):
        text += f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return text.replace("-", "−")


def layers(block: Any) -> str:
    """``[3, 5]``, or ``none``."""
    found = bounds(block)
    return f"[{found[0]},{NBSP}{found[1]}]" if found else "none"


def degrees(angle: float) -> str:
    return f"{angle:.1f}°"


def plain(value: Any) -> str:
    """Any value of a record as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain(item) for item in value)
    return str(value)


def join(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(part for part in (", ".join(items[:-1]), items[-1]) if part) if items else ""
