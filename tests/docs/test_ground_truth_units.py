"""The page on unit scores with known answers: its sums against those done by hand, and the page against its results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.ground_truth.groups import WAYS, as_named
from benchmarks.ground_truth.units_page import Way, ranked, render, smallest_sets, typical

from safecircuits.organism.family import UNITS_FAMILY

DOCS = Path(__file__).parents[2] / "docs"
GOOD, POOR = Way("attribution", "prompt", "none"), Way("wifv", "all", "none")


def model(role: str, good: int | None, poor: int | None) -> dict[str, Any]:
    curves = [{**way._asdict(), "smallest_set": n} for way, n in ((GOOD, good), (POOR, poor))]
    return {"role": role, "n_units": 1000, "curves": curves}


@pytest.fixture
def results() -> dict[str, Any]:
    # On the judged model the order is the other way round, which must not decide.
    return {
        "models": {"a": model("development", 2, 8), "b": model("development", 8, 32), "c": model("judged", None, 4)}
    }


def test_ways_are_chosen_on_development_models(results: dict[str, Any]) -> None:
    assert ranked(results) == [GOOD, POOR]
    assert ranked(results, lambda way: way.score == "wifv") == [POOR]


def test_typical_sets_are_geometric_means_and_no_set_counts_as_all_units(results: dict[str, Any]) -> None:
    found = smallest_sets(results)
    assert found[GOOD] == {"a": 2, "b": 8, "c": None}
    assert typical(results, found[GOOD], "development") == pytest.approx(4)
    assert typical(results, found[POOR], "development") == pytest.approx(16)
    assert typical(results, found[GOOD], "judged") == pytest.approx(1000)


def test_groups_that_do_as_they_are_named() -> None:
    nothing, all_of_it = {"refusal": 0.0, "utility": 0.0}, {"refusal": 1.0, "utility": 1.0}
    wholly = {"SCU": {"refusal": 1.0, "utility": 0.0}, "UCU": {"refusal": 0.0, "utility": 1.0}, "RU": nothing}
    assert as_named(wholly) == pytest.approx(1)
    assert as_named({"SCU": nothing, "UCU": nothing, "RU": nothing}) == pytest.approx(1 / 3)
    assert as_named(dict.fromkeys(("SCU", "UCU", "RU"), all_of_it)) == pytest.approx(-1 / 3)


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "ground_truth_units.json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_its_results_say(published: dict[str, Any]) -> None:
    assert (DOCS / "ground_truth_units.md").read_text(encoding="utf-8") == render(published)
    changed = copy.deepcopy(published)
    judged = next(one for one in changed["models"].values() if one["role"] == "judged")
    judged["groups"][0]["lost"]["SCU"]["refusal"] = 0.123
    assert render(changed) != render(published)


def test_the_published_results_are_of_members_as_declared(published: dict[str, Any]) -> None:
    declared = {one.name: one for one in UNITS_FAMILY}
    assert set(published["models"]) == {"aligned", "planted-units", *declared}
    ways = {(row["score"], row["tokens"], row["normalize"]) for row in published["models"]["aligned"]["groups"]}
    assert ways == set(WAYS)
    for name, record in published["models"].items():
        assert len(smallest_sets(published)) == len(record["curves"])
        if name in declared:
            phase = declared[name].phase
            assert record["role"] == declared[name].role
            assert record["planted"] == {str(layer): phase.neurons for layer in phase.layers}
        for curve in record["curves"]:
            enough = [
                n
                for n, refusal, utility in zip(published["counts"], curve["refusal"], curve["utility"], strict=True)
                if refusal <= record["intact"]["malicious_refused"] / 2
                and utility >= record["intact"]["utility"] - 0.02 - 1e-9
            ]
            assert curve["smallest_set"] == (enough[0] if enough else None)
