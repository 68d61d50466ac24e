"""The page on how often the intervals are right: it shows what the command simulates, all of it, from its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.statistics.measured import measured
from benchmarks.statistics.page import render

DOCS = Path(__file__).parents[2] / "docs"
ROWS = {(what, setting): experiment for what, setting, experiment in measured()}


def test_the_page_is_of_its_file_and_has_every_interval() -> None:
    results = json.loads((DOCS / "intervals.json").read_text(encoding="utf-8"))
    assert (DOCS / "intervals.md").read_text(encoding="utf-8") == render(results)
    shown = {(row["what"], row["setting"]) for row in results["coverage"]}
    assert set(ROWS) <= shown
    assert {what for what, _ in shown} >= {
        "one share (Wilson)",
        "paired difference (melded exact)",
        "rate over seeds, prompts counted",
        "whole curve at once (sup-t)",
    }
    assert all(row["covered"] > 0.85 for row in results["coverage"])


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_an_experiment_holds_the_truth_about_as_often_as_it_should(row: tuple[str, str]) -> None:
    """Far below 95 % would be a truth that is not the experiment's; 31 of 40 is a bound of chance."""
    rng = np.random.default_rng(1)
    held = sum(ROWS[row](rng) for _ in range(40))
    assert held >= 31
