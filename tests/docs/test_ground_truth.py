"""Scores of localization methods: against sums done by hand, on made-up results and on those that are published."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.ground_truth.page import render
from benchmarks.ground_truth.scoring import GUESSES, METHODS, OURS, constant_guess, scores, single_layers, table

from safecircuits.organism.family import LAYERS_FAMILY

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def member(role: str, block: list[int], **found: list[int] | None) -> dict[str, Any]:
    methods: dict[str, Any] = {name: {"layers": layers} for name, layers in found.items()}
    counts = [[-1 if last < first else 10 for last in range(8)] for first in range(8)]
    counts[0][0], counts[block[0]][block[0]], counts[7][7] = 3, 25, 12
    methods["grid up, all"] = {"layers": block, "alpha": 1.1, "rivals": [], "baseline": 10, "counts": counts}
    return {"role": role, "block": block, "learned": True, "methods": methods}


@pytest.fixture
def results() -> dict[str, Any]:
    found = {OURS: [2, 4], "gap onset": [3, 7]}
    return {
        "members": {
            "a": member("development", [1, 2], **found),
            "b": member("judged", [2, 4], **found),
            "c": member("judged", [3, 6], **found | {"gap onset": None}),
            "d": member("judged", [5, 5], **found) | {"learned": False},
        }
    }


def test_scores_are_those_done_by_hand(results: dict[str, Any]) -> None:
    rows = {row.method: row for row in scores(results)}
    ours, onset, always, evenly = (rows[name] for name in (OURS, "gap onset", *GUESSES))
    assert (ours.n, ours.exact, ours.nothing) == (2, 1, 0)
    assert ours.overlap == pytest.approx((1 + 2 / 5) / 2)
    assert (ours.first_error, ours.last_error) == (-0.5, -1.0)
    assert ours.behind == (0, 0, 0)
    assert (onset.exact, onset.nothing) == (0, 1)
    assert onset.overlap == pytest.approx((2 / 6 + 0) / 2)
    assert (onset.first_error, onset.last_error) == (1, 3)
    assert onset.behind[0] == pytest.approx(ours.overlap - onset.overlap)
    assert onset.behind[1] == pytest.approx(0.4)  # each resample lies between the two members' differences
    assert onset.behind[2] == pytest.approx(1 - 2 / 6)
    assert constant_guess(results) == [1, 2]
    assert always.overlap == pytest.approx((1 / 4 + 0) / 2)

    def chance(first: int, last: int) -> float:
        block, total = set(range(first, last + 1)), 0.0
        for a in range(8):
            for b in range(a, 8):
                other = set(range(a, b + 1))
                total += len(block & other) / len(block | other)
        return total / 36

    assert evenly.overlap == pytest.approx((chance(2, 4) + chance(3, 6)) / 2)


def test_only_planted_members_and_methods_run_on_all_are_scored(results: dict[str, Any]) -> None:
    results["members"]["b"]["methods"]["bounds up, all"] = {"layers": [2, 4]}
    assert "bounds up, all" not in {row.method for row in scores(results)}
    assert scores(results, "nobody") == []


def test_single_layers_are_counted_by_place(results: dict[str, Any]) -> None:
    del results["members"]["a"], results["members"]["d"]
    moved = single_layers(results, "grid up, all")
    assert moved == {
        "below": [-7, 0, -7, 0, 0],
        "inside": [15, 0, 0, 15, 0, 0, 0],
        "above": [0, 0, 2, 2],
    }


def test_the_table_has_a_row_for_each_method(results: dict[str, Any]) -> None:
    lines = table(results).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| gap onset | 0.17 [0.00, 0.33] | 0 of 2 | 1 | +1.0 | +3.0 | +0.53 [+0.40, +0.67] |" in lines


# --- the published page ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "ground_truth_layers.json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_its_results_say(published: dict[str, Any]) -> None:
    assert (DOCS / "ground_truth_layers.md").read_text(encoding="utf-8") == render(published)
    changed = copy.deepcopy(published)
    name = next(name for name, one in changed["members"].items() if one["role"] == "judged")
    changed["members"][name]["methods"][OURS]["layers"] = [0, 7]
    assert render(changed) != render(published)


def test_the_published_results_are_of_members_as_declared(published: dict[str, Any]) -> None:
    declared = {one.name: one for one in LAYERS_FAMILY}
    assert {record["role"] for record in published["members"].values()} == {"development", "judged"}
    for name, record in published["members"].items():
        one = declared[name]
        assert (record["role"], record["seed"]) == (one.role, one.seed)
        assert record["block"] == [one.phase.layers[0], one.phase.layers[-1]]
        assert {OURS, "gap onset", "bounds up, all", "bounds down, all"} <= set(record["methods"])
    assert set(METHODS[:4]) <= {row.method for row in scores(published)}
