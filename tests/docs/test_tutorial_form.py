"""What every tutorial has: objectives, time and hardware, exercises with folded solutions, and public names alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import jupytext
import pytest
from tutorials.execute import FOLDER, SOLUTION, exercises, sources

import safecircuits as sc

NAMES = [path.stem for path in sources()]


def notebook(name: str) -> Any:
    return jupytext.read(FOLDER / f"{name}.ipynb")


def code_of(name: str) -> str:
    """Every cell's code, with that of the folded solutions; magics are no Python."""
    book = notebook(name)
    cells = [cell.source for cell in book.cells if cell.cell_type == "code"]
    solutions = [found[1] for cell in book.cells if (found := SOLUTION.search(cell.source))]
    lines = "\n".join(cells + solutions).splitlines()
    return "\n".join(line for line in lines if not line.startswith("%"))


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_what_a_reader_will_know_and_what_it_takes(name: str) -> None:
    opening = notebook(name).cells[0].source
    assert opening.startswith(f"# {name[0]}. ")
    goals = opening.split("**After this you can**")[1].split("**Time**")[0]
    assert 3 <= len(re.findall(r"^- ", goals, re.MULTILINE)) <= 6
    assert re.search(r"\*\*Time\*\*: \d+ minutes to read and try; its cells take about", opening)
    assert "**Hardware**" in opening
    assert "%pip install safecircuits" in opening


@pytest.mark.parametrize("name", NAMES)
def test_it_has_exercises_whose_answers_are_the_readers(name: str) -> None:
    book = notebook(name)
    found = exercises(book)
    assert len(found) >= 2
    for place, _, check in found:
        said = "".join(output.get("text", "") for output in book.cells[place].outputs)
        assert "check(" in check
        assert said.splitlines()[-1] in ("no answer yet", "not right: try again"), "the solution must stay folded"
    titles = [cell for cell in book.cells if cell.cell_type == "markdown" and "### Exercise" in cell.source]
    assert len(titles) == len(found)


@pytest.mark.parametrize("name", NAMES)
def test_it_asserts_what_it_claims(name: str) -> None:
    assert sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code_of(name)))) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_its_names_are_public(name: str) -> None:
    """No module of ours is imported by its path, and each ``sc.a.b`` is in the face of its room."""
    tree = ast.parse(code_of(name))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not str(node.module).startswith("safecircuits"), ast.unparse(node)
        if isinstance(node, ast.Import):
            assert all(one.name == "safecircuits" or not one.name.startswith("safecircuits") for one in node.names)
    for chain in set(re.findall(r"\bsc((?:\.\w+)+)", code_of(name))):
        here = sc
        for part in chain.split(".")[1:]:
            if isinstance(here, type) or not hasattr(here, "__path__"):
                break
            assert part in dir(here), f"sc{chain}"
            here = getattr(here, part)


@pytest.mark.parametrize("name", NAMES)
def test_it_was_kept_as_it_ran_with_sharp_figures(name: str) -> None:
    book = notebook(name)
    text = Path(FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(home|work|tmp|root|Users)/", text)
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert not any(output.output_type == "error" for output in outputs)
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" not in kinds
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
