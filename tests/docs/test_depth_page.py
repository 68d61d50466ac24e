"""The page about depth is what its results say, and these are sums of their own rows."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.ground_truth.depth import MOST, render

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "depth.json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_its_results_say(published: dict[str, Any]) -> None:
    assert (DOCS / "depth.md").read_text(encoding="utf-8") == render(published)
    changed = copy.deepcopy(published)
    next(iter(changed["members"].values()))["rows"][0]["kl"] = 123.0
    assert render(changed) != render(published)


def test_the_depth_is_where_most_of_the_kl_lies(published: dict[str, Any]) -> None:
    for name, one in published["members"].items():
        first = next(row["tokens"] for row in one["rows"] if row["before"] >= MOST)
        assert one["depth"] == first, name
        assert one["rows"][0]["refused"] == pytest.approx(one["refusals"] / one["prompts"])
