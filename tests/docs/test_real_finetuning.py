"""The page of fine-tuning on a real model: every figure against what its results say, counted by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from benchmarks.freezing.grid import changed
from benchmarks.freezing.real import Setup
from benchmarks.freezing.real_page import render


def cell(arm: str, seed: int, refused: str, losses: tuple[float, float] = (1.5, 0.9)) -> dict[str, Any]:
    share = refused.count("1") / len(refused)
    points = [
        {"step": 0, "malicious_refused": 1.0, "task_loss": losses[0]},
        {"step": 10, "malicious_refused": share, "task_loss": losses[1]},
    ]
    counts = {"taught": refused, "opening": "0" * len(refused), "incoherent": 1, "cut": 2, "n": len(refused)}
    return {
        "scenario": "gsm8k",
        "seed": seed,
        "arm": arm,
        "frozen": f"what {arm} freezes",
        "n_frozen": 25,
        "n_trainable": 75,
        "bit_identical": True,
        "curve": points,
        "malicious": counts,
        "over_rejection": {**counts, "taught": "10"},
        "task_loss": losses[1],
        "problems": {"right": 3, "n": 12},
        "point": {name: points[1][name] for name in ("malicious_refused", "task_loss")},
        "seconds": 1.0,
    }


@pytest.fixture
def record() -> dict[str, Any]:
    setup = replace(Setup(), tasks=("gsm8k",), arms=("full", "decision layers", "LoRA"), seeds=(0, 1))
    before = cell("before", 0, "1" * 8, (1.5, 1.5))
    cells = [cell("full", 0, "10000000"), cell("full", 1, "11000000")]
    cells += [cell("decision layers", 0, "11111110"), cell("decision layers", 1, "11111111")]
    return {
        "setup": json.loads(json.dumps(asdict(setup))),
        "changes_sha256": "0123456789abcdef0123",
        "decision": {"layers": [12, 17], "verdict": "layers [12, 17] (96 %)"},
        "before": {"gsm8k": before},
        "cells": cells,
    }


def row(page: str, name: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    return [part.strip() for part in line.strip("|").split("|")]


def test_counts_are_those_of_all_seeds_together(record: dict[str, Any]) -> None:
    page = render(record)
    found = row(page, "full")
    assert found[1:3] == ["25 %", "2"]
    assert "(3/16)" in found[3]
    assert "(0/16)" in found[4]
    assert found[5:7] == ["4", "8"]  # one and two of each set and seed
    assert found[8] == "0.900"
    assert "(6/24)" in found[9]
    assert "0123456789abcdef" in page
    assert "layers [12, 17] (96 %)" in page


def test_arms_are_paired_prompt_by_prompt_with_full_fine_tuning(record: dict[str, Any]) -> None:
    """Twelve verdicts differ, all one way: an exact two-sided p of 2 / 2^12."""
    page = render(record)
    paired = next(line for line in page.splitlines() if line.startswith("| decision layers | all |"))
    assert "+75.0" in paired
    assert float(paired.split("|")[4]) == pytest.approx(2 / 2**12, rel=0.02)
    assert "keeps more" in paired


def test_losses_that_meet_are_compared_there(record: dict[str, Any]) -> None:
    page = render(record)
    assert "At matched loss" in page
    for one in record["cells"]:
        if one["arm"] == "full":
            one["curve"][1]["task_loss"] = 1.6
    assert "No task loss is reached both by full fine-tuning" in render(record)


def test_what_was_not_run_is_said(record: dict[str, Any]) -> None:
    assert "gsm8k, seed 0, LoRA; gsm8k, seed 1, LoRA" in render(record)
    only = {**record, "cells": record["cells"][2:]}
    assert "gsm8k, seed 0, full" in render(only)


def test_a_field_of_the_setup_is_replaced_and_said_in_the_command(record: dict[str, Any]) -> None:
    assert changed(Setup(), ["seeds=[0,1]", "lr=0.0003"]) == replace(Setup(), seeds=(0, 1), lr=0.0003)
    with pytest.raises(ValueError, match="no field 'sedes'"):
        changed(Setup(), ["sedes=[0]"])
    assert "--set 'seeds=[0, 1]'" in render(record)
