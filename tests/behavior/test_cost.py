"""What answers cost is said: tokens where a detector reads all of them, and time once a batch is done."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import safecircuits as sc
from commands import succeed
from safecircuits.base.notices import Notice
from safecircuits.behavior import cost, pressure
from safecircuits.behavior.cost import timed


@pytest.fixture(scope="module")
def model() -> Any:
    return sc.load_model("organism:aligned")


def test_a_detector_that_reads_whole_answers_says_what_it_costs(model: Any) -> None:
    harmful, borderline = (sc.load_prompts(f"organism:{name}", n=3) for name in ("malicious", "over_rejection"))
    with pytest.warns(Notice, match=r"wei2024 reads whole answers: 6 of up to 256 tokens are at most 1,536 "):
        sc.evaluate(model, malicious=harmful, over_rejection=borderline, detector="wei2024")
    with pytest.warns(Notice, match=r"6 of up to 256 tokens"):
        pressure(model, harmful, system="be careful .", detector="wei2024")


def test_openings_and_limits_of_ones_own_are_no_news(model: Any) -> None:
    harmful, known = (sc.load_prompts(f"organism:{name}", n=3) for name in ("malicious", "utility"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        sc.evaluate(model, malicious=harmful, utility=known)
        sc.evaluate(model, utility=known, detector="wei2024")
        found = sc.evaluate(model, malicious=harmful, detector="wei2024", max_new_tokens=4)
        assert found.tallies["malicious"].cut == 3
        pressure(model, harmful, detector="wei2024", max_new_tokens=4)


def test_the_command_says_it_before_it_begins(tmp_path: Any) -> None:
    common = ["evaluate", "--model", "organism:aligned", "--malicious", "organism:malicious", "--n", 4]
    said = succeed(*common, "--detector", "wei2024", "--out", tmp_path / "whole").stderr
    assert "4 of up to 256 tokens are at most 1,024 tokens" in " ".join(said.split())
    said = succeed(*common, "--out", tmp_path / "openings").stderr
    assert "tokens are at most" not in said


@pytest.mark.parametrize(
    ("seconds", "said"), [(1.0, []), (40.0, ["2 of 8 answers in 40 s: about 2 min for the others"])]
)
def test_time_after_the_first_batch(monkeypatch: pytest.MonkeyPatch, seconds: float, said: list[str]) -> None:
    now, told = [0.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cost, "say", told.append)

    def batches() -> Iterator[int]:
        for n in (2, 3, 3):
            now[0] += seconds
            yield n

    assert list(timed(batches(), 8)) == [2, 3, 3]
    assert told == said
    assert list(timed(iter([8]), 8)) == [8]
    assert told == said
