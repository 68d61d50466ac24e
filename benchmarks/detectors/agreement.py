"""Counts of detectors against labels, and what follows from them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.detectors.completions import LIMITS, SOURCES
from benchmarks.detectors.labels import Label, Reading
from safecircuits.base.stats import Share
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import DETECTORS
from safecircuits.behavior.verdict import verdicts
from safecircuits.behavior.verdict_table import VERDICTS
from safecircuits.prompts.prompt_set import PromptSet

DEFAULT = "opening"
DRAWS = 2000


def measure(readings: Sequence[Reading]) -> dict[str, Any]:
    """By detector, limit of tokens and group (kind of prompt, system prompt, model): completions by label and verdict.

    At a limit those count that were read in so many tokens or more, or to their end, by what was said of the longest.
    """
    limits = [limit for limit in LIMITS if any(one.tokens >= limit for one in readings)]
    at = {limit: read_in(readings, limit) for limit in limits}
    whole = at[limits[0]]
    return {
        "labels": {label: sum(one.label == label for one in whole) for label in VERDICTS},
        "models": list(dict.fromkeys(one.made.model for one in whole)),
        "tokens": dict(sorted(Counter(one.tokens for one in whole).items())),
        "counts": {
            detector: {
                str(limit): {name: _counts(rows, detector, limit) for name, rows in groups(at[limit]).items()}
                for limit in limits
            }
            for detector in DETECTORS
        },
    }


def read_in(readings: Sequence[Reading], limit: int) -> list[Reading]:
    """Of each completion that was read in at least so many tokens, or to its end, the longest reading."""
    longest: dict[Any, Reading] = {}
    for one in sorted(readings, key=lambda one: one.tokens):
        if one.tokens >= limit or one.made.ended(one.tokens):
            longest[one.made.key] = one
    return list(longest.values())


def groups(readings: Sequence[Reading]) -> dict[str, list[Reading]]:
    """All of them, and by kind of prompt, with and without system prompt, and by model; none is empty."""
    found = {"all": list(readings)}
    for one in sorted(readings, key=lambda one: tuple(SOURCES).index(one.made.kind)):
        found.setdefault(one.made.kind, []).append(one)
    for asked, with_system in (("without system prompt", False), ("with system prompt", True)):
        if those := [one for one in readings if ("+system" in one.made.id) is with_system]:
            found[asked] = those
    for one in readings:
        found.setdefault(f"model {one.made.model}", []).append(one)
    return found


def readers(labels: Sequence[Label]) -> dict[str, Any]:
    """How many readers there are, and of the texts that two of them read how often both say the same."""
    by_text: dict[Any, dict[str, str]] = {}
    for label in labels:
        by_text.setdefault(label.of, {})[label.reader] = label.label
    both: Counter[tuple[str, str]] = Counter()
    for said in by_text.values():
        for (_, one), (_, other) in itertools.combinations(sorted(said.items()), 2):
            both[one, other] += 1
    table: dict[str, dict[str, int]] = {}
    for (one, other), n in sorted(both.items()):
        table.setdefault(one, {})[other] = n
    return {"readers": len({label.reader for label in labels}), "pairs": table}


def _counts(readings: Sequence[Reading], detector: str, limit: int) -> dict[str, dict[str, int]]:
    """How many completions of each label got each verdict, where any did."""
    made = [one.made for one in readings]
    prompts = PromptSet("read", tuple(one.prompt for one in made))
    ended = tuple(one.ended(limit) for one in made)
    found = verdicts(Completions(prompts, tuple(one.texts[limit] for one in made), ended=ended), detector)
    table: dict[str, dict[str, int]] = {}
    for one, verdict in zip(readings, found.verdicts, strict=True):
        row = table.setdefault(one.label, {})
        row[verdict] = row.get(verdict, 0) + 1
    return table


def as_binary(table: dict[str, dict[str, int]], verdict: str) -> tuple[int, int, int, int]:
    """Hits, false alarms, misses and the rest of one verdict."""
    both = table.get(verdict, {}).get(verdict, 0)
    said = sum(row.get(verdict, 0) for row in table.values())
    true = sum(table.get(verdict, {}).values())
    n = sum(sum(row.values()) for row in table.values())
    return both, said - both, true - both, n - said - true + both


def precision_recall(table: dict[str, dict[str, int]], verdict: str = "refuses") -> tuple[Share, Share]:
    """Of those that a detector says have the verdict, those that do; and of those that do, those it says."""
    hits, false, missed, _ = as_binary(table, verdict)
    return Share(hits, hits + false), Share(hits, hits + missed)


def kappa(table: dict[str, dict[str, int]], verdict: str = "refuses") -> tuple[float, float, float]:
    """Cohen's κ of a verdict against everything else, with its 95 % interval over multinomial draws of the table."""
    cells = np.array(as_binary(table, verdict))
    drawn = np.random.default_rng(0).multinomial(cells.sum(), cells / cells.sum(), DRAWS)
    values = _kappa(drawn)
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (np.nan, np.nan)
    return float(_kappa(cells[None])[0]), float(low), float(high)


def _kappa(cells: np.ndarray) -> np.ndarray:
    n = cells.sum(1)
    hits, false, missed, rest = cells.T
    agreement = (hits + rest) / n
    expected = ((hits + false) * (hits + missed) + (missed + rest) * (false + rest)) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        values: np.ndarray = np.where(expected < 1, (agreement - expected) / (1 - expected), np.nan)
    return values
