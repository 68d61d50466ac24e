"""The page on open options says what its results say, and its figures are what they are called."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.ground_truth.options import MODELS
from benchmarks.ground_truth.options_common import COUNTS, halving
from benchmarks.ground_truth.options_page import noise, render, shown

ROOT = Path(__file__).parents[2]


class FakeRemovals:
    """A model that loses a hundredth of its refusals by each unit."""

    intact = SimpleNamespace(rates={"malicious_refused": 0.9, "utility": 1.0})

    def without(self, units: int) -> Any:
        return SimpleNamespace(rates={"malicious_refused": 0.9 - units / 100, "utility": 1 - units / 1000})


def test_halving_takes_the_first_count_that_is_enough() -> None:
    groups: Any = SimpleNamespace(top=lambda count: count)
    assert halving(FakeRemovals(), groups, (2, 32, 44)) == {"units": None, "utility": None}
    assert halving(FakeRemovals(), groups, COUNTS) == {"units": 64, "utility": pytest.approx(0.936)}
    assert halving(FakeRemovals(), groups, (45, 64)) == {"units": 45, "utility": pytest.approx(0.955)}


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "ssah_options.json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_its_results_say(published: dict[str, Any]) -> None:
    assert (ROOT / "docs" / "ssah_options.md").read_text(encoding="utf-8") == render(published)
    changed = copy.deepcopy(published)
    changed["lines"][0]["settings"][1]["figures"] = dict.fromkeys(changed["lines"][0]["settings"][1]["figures"], 1)
    assert render(changed) != render(published)


def test_every_line_has_one_default_and_the_figures_of_its_topic(published: dict[str, Any]) -> None:
    assert set(published["models"]) == set(MODELS)
    assert {line["topic"] for line in published["lines"]} == {"probe", "units", "transfer", "freezing"}
    page = render(published)
    for line in published["lines"]:
        assert len(line["settings"]) > 1
        assert sum(setting["default"] for setting in line["settings"]) == 1
        assert len({frozenset(setting["figures"]) for setting in line["settings"]}) == 1
        assert f"| {line['option']}<br>`{line['argument']}` |" in page


def test_effects_within_noise_are_called_so(published: dict[str, Any]) -> None:
    """Two shares of n prompts are beyond noise at the width of a 95 % interval of their difference."""
    assert noise(40) == pytest.approx(0.219, abs=1e-3)
    for refused, word in ((0.9, "By no more than noise: what"), (0.7, "Moved by: what"), (1.0, "Unmoved by: what")):
        changed = copy.deepcopy(published)
        line = next(line for line in changed["lines"] if line["topic"] == "freezing")
        line["option"] = "what"
        for i, setting in enumerate(line["settings"]):
            setting["figures"]["refused"] = 1.0 if i else refused
        changed["lines"] = [one for one in changed["lines"] if one["topic"] != "freezing"] + [line]
        assert word in render(changed)


def test_figures_are_printed_by_what_they_are() -> None:
    assert shown("aligned: units", 64.0) == "64"
    assert shown("aligned: units", None) == "—"
    assert shown("refused", 0.625) == "62 %"
    assert shown("frozen parameters", 0.023) == "2.3 %"
    assert shown("task loss", 0.1234) == "0.12"
