"""Counts of detectors against labels, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.detectors.completions import LIMITS, Made
from safecircuits.base.stats import Share
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import DETECTORS
from safecircuits.behavior.verdict import verdicts
from safecircuits.behavior.verdict_table import VERDICTS
from safecircuits.prompts.prompt_set import PromptSet

DEFAULT = "opening"
DRAWS = 2000
Labelled = tuple[Made, str]


def measure(pairs: Sequence[Labelled]) -> dict[str, Any]:
    """By detector, limit of tokens and kind of prompt: completions by label and verdict."""
    kinds = list(dict.fromkeys(one.kind for one, _ in pairs))
    groups = {"all": list(pairs)} | {kind: [pair for pair in pairs if pair[0].kind == kind] for kind in kinds}
    for asked, with_system in (("without system prompt", False), ("with system prompt", True)):
        groups[asked] = [pair for pair in pairs if ("+system" in pair[0].id) is with_system]
    return {
        "labels": {label: sum(said == label for _, said in pairs) for label in VERDICTS},
        "models": list(dict.fromkeys(one.model for one, _ in pairs)),
        "counts": {
            detector: {
                str(limit): {
                    name: _counts(rows, detector, limit)
                    for name, rows in groups.items()
                    if rows and (name == "all" or detector == DEFAULT)
                }
                for limit in LIMITS
            }
            for detector in DETECTORS
        },
    }


def _counts(pairs: Sequence[Labelled], detector: str, limit: int) -> dict[str, dict[str, int]]:
    """How many completions of each label got each verdict, where any did."""
    prompts = PromptSet("read", tuple(one.prompt for one, _ in pairs))
    ended = tuple(one.whole_in is not None and one.whole_in < limit for one, _ in pairs)
    found = verdicts(Completions(prompts, tuple(one.texts[limit] for one, _ in pairs), ended=ended), detector)
    table: dict[str, dict[str, int]] = {}
    for (_, label), verdict in zip(pairs, found.verdicts, strict=True):
        row = table.setdefault(label, {})
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
