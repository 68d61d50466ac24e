"""One way to write a study: parts run in order, are kept, go on, come again from the folder, stand on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from safecircuits.behavior.measured import Behavior
from safecircuits.cli.frame import Run, run_command
from safecircuits.model.sites import ModelShape
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Maybe, Part, Parts, Shown, Study
from safecircuits.report.sections import Exhibit
from safecircuits.results.load_record import load_run
from safecircuits.results.run import RunDirectory
from safecircuits.studies.running import Running

SHAPE = ModelShape(architecture="a", n_layers=2, d_model=4, d_mlp=8, n_heads=2, n_kv_heads=2)
made: list[str] = []


def behavior(refused: int) -> Behavior:
    return Behavior(torch.arange(4) < refused, None, None)


def first(study: Toy) -> Behavior:
    made.append("first")
    if study.fails == "first":
        raise KeyboardInterrupt
    return behavior(study.n)


def another(study: Toy, key: tuple[str, int]) -> Behavior:
    made.append(f"{key[0]}{key[1]}")
    if study.fails == made[-1]:
        raise KeyboardInterrupt
    return behavior(key[1])


def section(study: Toy, page: StudyPage) -> None:
    page.add("first", "Firstly", "", [Exhibit(None, "", f"refused {int(study[FIRST].malicious.sum())}")])


def claims(study: Toy) -> Iterator[Conclusion]:
    yield "refusal falls", "SSAH", "yes", f"From 4 to {study.n}."
    yield "utility stays", "SSAH", "no", f"With {len(study[SEVERAL])} others."


@dataclass(kw_only=True)
class Base(Study):
    n: int = 1
    fails: str = ""

    @property
    def title(self) -> str:
        return f"a study of {self.name}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"layers": self.shape.n_layers}


FIRST: Part[Toy, Behavior] = Part("first", Behavior, first, section=section)
SEVERAL: Parts[Toy, tuple[str, int], Behavior] = Parts(
    lambda study: {("a", n): f"several_{n}" for n in range(study.n + 1)}, Behavior, another
)
LATER: Maybe[Toy, Behavior] = Maybe("later", Behavior, first, when=lambda study: study.n > 2)


class Toy(Base):
    """One of each kind of part."""

    first = FIRST
    several = SEVERAL
    later = LATER
    end = Shown["Toy"](claims=claims, tables=lambda study: {"own": pd.DataFrame({"n": [study.n]})})


def toy(**more: Any) -> Toy:
    made.clear()
    return Toy(source="organism:toy", name="toy", shape=SHAPE, settings=Running(), **more)


def test_parts_run_in_order_and_go_on_where_they_were_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), RunDirectory.open(folder, "toy", {}) as run:
        toy(n=2, fails="a1").go(run)
    assert made == ["first", "a0", "a1"]
    with RunDirectory.open(folder, "toy", {}) as run:
        study = toy(n=2).go(run)
    assert made == ["a1", "a2"]
    assert [int(one.malicious.sum()) for one in study.several.values()] == [0, 1, 2]
    assert study.first.equals(study[FIRST])
    assert study.later is None
    assert {path.name for path in (folder / "results").iterdir()} == {"first", *(f"several_{n}" for n in range(3))}
    assert "results/several_0" in load_run(folder)["files"]


def test_a_study_comes_again_from_its_folder_and_says_what_is_missing(tmp_path: Path) -> None:
    for n in (2, 3):
        folder = tmp_path / str(n)
        with RunDirectory.open(folder, "toy", {}) as run:
            study = toy(n=n).go(run)
        again = toy(n=n).again(folder)
        assert not made
        assert again.found.keys() == study.found.keys()
        assert all(again.found[name].equals(one) for name, one in study.found.items())
        assert (again.later is None) == (n == 2)
        assert again.page({}) == study.page({})
    changed = again.having(first=behavior(4), later=None)
    assert "refused 4" in changed.page({})[0]
    assert (changed.later, again.later is None) == (None, False)
    with pytest.raises(ValueError, match="several_3"):
        toy(n=3).again(tmp_path / "2")


def test_conclusions_are_the_main_table_and_the_findings(tmp_path: Path) -> None:
    app = typer.Typer()

    @run_command(app, prompts=False, model=False)
    def study(run: Run) -> None:
        toy(n=1).go(run.begin()).write(run.provenance)

    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["--out", str(out), "--json"])
    said = [
        {"effect": "refusal falls", "paper": "SSAH", "shows": "yes", "text": "From 4 to 1.", "verdict": "supported"},
        {
            "effect": "utility stays",
            "paper": "SSAH",
            "shows": "no",
            "text": "With 2 others.",
            "verdict": "not supported",
        },
    ]
    assert json.loads(result.stdout)["table"] == said
    assert pd.read_csv(out / "tables" / "conclusions.csv").to_dict("records") == said
    assert pd.read_csv(out / "tables" / "own.csv").to_dict("records") == [{"n": 1}]
    assert json.loads((out / "run.json").read_text())["findings"] == [
        "1 supported, 1 not supported, 0 inconclusive.",
        "supported: refusal falls (SSAH). From 4 to 1.",
        "not supported: utility stays (SSAH). With 2 others.",
    ]
    page = (out / "report.html").read_text()
    assert "a study of toy" in page
    assert "refused 1" in page
