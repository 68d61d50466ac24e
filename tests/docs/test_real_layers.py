"""The page on localization in a real model: numbers by hand, and the page in docs is that of its results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.ground_truth.decision_rules import rules, thresholds
from benchmarks.ground_truth.real_layers_page import render, table

DOCS = Path(__file__).parents[2] / "docs"


def member(role: str, block: list[int] | None, found: list[int] | None, kind: str = "layers") -> dict[str, Any]:
    sure = {"share": 0.5, "first": [1, 2], "last": [4, 5], "none": 0.0}
    said = {"layers": found, "verdict": "", "resamples": None if found is None else sure}
    share = [None] * 6 if found is None else [0.0, 0.1, 0.4, 0.8, 0.9, 1.0]
    methods = {"gap": said, "decision": said | {"share": share}}
    return {"kind": kind, "role": role, "block": block, "seed": 1, "methods": methods, "seconds": {}}


@pytest.fixture
def results() -> dict[str, Any]:
    sizes = {kind: {"n": 30, "sha": ""} for kind in ("normal", "malicious", "over_rejection")}
    return {
        "provenance": {"datasets": sizes},
        "rules": {"decision": {"growth": 0.7}},
        "members": {
            "smollm2": member("development", None, None, "base"),
            "a": member("judged", [2, 3], [2, 4]),
            "b": member("judged", [2, 3], None),
            "c": member("development", [2, 3], [2, 3]),
            "free": member("judged", None, [1, 5], "aligned"),
        },
    }


def test_overlaps_by_role(results: dict[str, Any]) -> None:
    rows = [line for line in table(results).splitlines() if line.startswith("| decision")]
    assert rows[0] == "| decision layers | judged | 2 | 0.33 [0.00, 0.67] | 0 of 2 | 1 | +0.0 | +1.0 |"
    assert rows[1].startswith("| decision layers | development | 1 | 1.00 [1.00, 1.00] | 1 of 1 | 0 |")
    assert len(rows) == 2
    # The one development member's block is the best guess, and both judged members have the same.
    assert "| always the same block | judged | 2 | 1.00 [1.00, 1.00] | 2 of 2 | 0 | +0.0 | +0.0 |" in table(results)


def test_the_page_shows_what_was_found_and_what_was_not(results: dict[str, Any]) -> None:
    page = render(results)
    assert "| a | judged | [2, 3] | [2, 4] (50%) | [2, 4] (50%) | not run | not run |" in page
    assert "| b | judged | [2, 3] | none | none | not run | not run |" in page
    assert "| c | development | [2, 3] | **[2, 3] (50%)** |" in page
    assert "| smollm2 | development | nothing | none |" in page
    assert "| free | judged | unknown (aligned) | [1, 5] (50%) |" in page
    assert "| a | judged | 0.00 | 0.10 | **0.40** | **0.80** | 0.90 | 1.00 |" in page


def test_rules_to_choose_from() -> None:
    share = [0.0, 0.02, 0.1, 0.5, 0.9, 0.96, 1.0]
    assert list(thresholds(0.05, 0.95)(share)) == [2, 5]
    assert list(thresholds(0.2, 0.85)(share)) == [3, 4]
    assert list(rules()["growth above 0.7 of even"](share)) == [3, 4]


def test_the_page_in_docs_is_that_of_its_results() -> None:
    published = json.loads((DOCS / "ground_truth_real_layers.json").read_text(encoding="utf-8"))
    assert (DOCS / "ground_truth_real_layers.md").read_text(encoding="utf-8") == render(published)
