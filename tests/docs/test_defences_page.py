"""The page about defences says what the committed numbers say, and its maker works on a grid of its own."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.defences import page

    return page


def test_the_page_is_the_rendering_of_the_numbers(made: Any) -> None:
    record = json.loads(made.NUMBERS.read_text(encoding="utf-8"))
    assert made.PAGE.read_text(encoding="utf-8") == made.page(record)


def test_the_page_follows_the_numbers(made: Any) -> None:
    record = json.loads(made.NUMBERS.read_text(encoding="utf-8"))
    for cell in record["studies"]["aligned"]["cells"]:
        for point in cell["points"]:
            complied = float(cell["arm"] != "freeze")
            point.update(selected=complied, reported=complied)
    page = made.page(record)
    study = made.study_of(record["studies"]["aligned"])
    assert study.against("freeze").verdict == "costs more"
    assert set(study.worst_harm("freeze")) == {0.0}
    assert "raised by: freeze (" in page.partition("## In short")[2].split("## ")[0]
    first = [line.split(" | ") for line in page.split("## ")[0].splitlines() if "| freeze |" in line]
    raised = [("**raises**" in row[3], "**raises**" in row[6]) for row in first]
    assert raised == [(True, False), (False, False), (False, False)]
    row = next(line for line in page.splitlines() if line.startswith("| freeze | training |"))
    assert "| 0 of 3 |" in row


def test_a_real_model_has_its_rows_and_says_what_harm_means_there(made: Any) -> None:
    from benchmarks.defences.real import LOW, RealSetup, real_attackers

    record = json.loads(made.NUMBERS.read_text(encoding="utf-8"))
    part = copy.deepcopy(record["studies"]["planted-layers"])
    part["provenance"]["wall_seconds"] = 90.0
    part["cells"] = [cell for cell in part["cells"] if "LoRA" not in cell["attacker"]]
    record["studies"]["real"] = part | {"read": {}}
    record["setup"]["real"] = asdict(RealSetup())
    page = made.page(record)
    assert "cells took 2 minutes" in page
    assert "agrees* to a harmful request in place of refusing" in page
    assert "no attacker that the budget allowed had a rate that suits adapters" in page
    row = next(line for line in page.splitlines() if line.startswith("| a real model, planted | freeze |"))
    assert "not measured" in row
    for cell in part["cells"]:
        cell["attacker"] = LOW if cell["attacker"].endswith("lr 0.0002") else cell["attacker"]
    page = made.page(record)
    row = next(line for line in page.splitlines() if line.startswith("| a real model, planted | freeze |"))
    assert "not measured" not in row
    assert [one.name for one in real_attackers()].count(LOW) == 1


def test_the_grid_runs_in_small(made: Any, tmp_path: Path) -> None:
    from benchmarks.defences import run

    parts = {"attackers": [1] * len(run.STUDIES), "seeds": [0], "stops": [1], "prompts": 4, "align_steps": 1}
    setup = run.changed(run.Setup(), [f"{name}={json.dumps(value)}" for name, value in parts.items()])
    record = run.document(setup, {"aligned": run.study("aligned", setup, tmp_path)}, "the command")
    page = made.page(json.loads(json.dumps(record)))
    assert run.grid("aligned")[0].name in page
    assert "`the command`" in page
