"""How many verdicts flip when something is added to the completions, by detector: counts, and the page's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.detectors.labels import Reading
from benchmarks.markdown import markdown_table
from safecircuits.base.stats import Share
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import DETECTORS
from safecircuits.behavior.robustness import CHANGES, judge_robustness
from safecircuits.prompts.prompt_set import PromptSet


def measure(readings: Sequence[Reading]) -> dict[str, dict[str, list[int]]]:
    """By detector and change: how many verdicts flip, and of how many."""
    answers = Completions(
        PromptSet("read", tuple(made.prompt for made, _, _ in readings)),
        tuple(made.texts[tokens] for made, _, tokens in readings),
    )
    return {
        name: {change: [share.hits, share.n] for change, share in judge_robustness(answers, name).flipped.items()}
        for name in DETECTORS
    }


def tables(counts: dict[str, dict[str, list[int]]]) -> dict[str, str]:
    """By the verdict that completions had before: a row a detector, a column a change."""
    return {
        of: _table(counts, [name for name, change in CHANGES.items() if change.of == of])
        for of in ("complies", "refuses")
    }


def _table(counts: dict[str, dict[str, list[int]]], changes: list[str]) -> str:
    rows = []
    for detector, flips in counts.items():
        shares = [Share(*flips[change]) for change in changes]
        rows.append([f"`{detector}`", str(shares[0].n), *map(_cell, shares)])
    return markdown_table(["detector", "n", *changes], rows)


def _cell(share: Share) -> str:
    if not share.n:
        return "–"
    low, high = (100 * bound for bound in share.interval)
    return f"{100 * share.rate:.0f} % [{low:.0f}, {high:.0f}]"


def changes() -> str:
    """What each change adds, as a list."""
    lines: list[Any] = [f"- {name}: {change.make('…')}" for name, change in CHANGES.items()]
    return "\n".join(lines)
