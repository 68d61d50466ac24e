"""The page of both papers' tables says what the published numbers and ours say, and runs can be added to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import safecircuits as sc
from safecircuits.papers.published import PAPERS, published_numbers
from safecircuits.results.run import RunDirectory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.reproduction import measured, page

    return measured, page


def test_the_page_is_the_rendering_of_the_numbers(made: Any) -> None:
    _, page = made
    entries = json.loads(page.NUMBERS.read_text(encoding="utf-8"))
    assert page.PAGE.read_text(encoding="utf-8") == page.page(entries)


def test_every_published_number_is_on_it_and_nothing_passes_for_measured(made: Any) -> None:
    _, page = made
    assert {paper: set(page.TABLES[paper]) for paper in PAPERS} == {
        paper: set(published_numbers(paper)["table"]) for paper in PAPERS
    }
    text = page.page([])
    cells = [cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")]
    for paper in PAPERS:
        assert all(f"{value:g}" in cells for value in published_numbers(paper)["value"])
    assert "**" not in text.replace("**embedded model**", "")
    assert "`safecircuits study safety-layers`: not run." in text
    assert "`safecircuits study ssah`: not run." in text


def test_a_run_is_added_and_stands_beside_what_is_published(made: Any, tmp_path: Path) -> None:
    measured, page = made
    with RunDirectory.open(tmp_path / "run", "benchmark", {"source": "google/gemma-2b-it"}) as run:
        rows = [
            ("safety_layers", "Table 1", "unscaled", "over_rejected", "436", "77"),
            ("safety_layers", "Table 1", "alpha", "alpha", "1.2", ""),
        ]
        columns = ["paper", "table", "setting", "metric", "published", "measured"]
        run.table("published", pd.DataFrame(rows, columns=columns), main=True)
    with RunDirectory.open(tmp_path / "study", "study ssah", {"model": "organism:aligned"}) as run:
        said = {"effect": "Few units carry refusal", "paper": "SSAH §3.4", "text": "Without 41 units | 3 % refused."}
        run.table("conclusions", pd.DataFrame([said | {"shows": "unclear", "verdict": "inconclusive"}]), main=True)
    out = tmp_path / "numbers.json"
    measured.main([str(tmp_path / "run"), "--out", str(out)])
    measured.main([str(tmp_path / "study"), str(tmp_path / "run"), "--out", str(out)])
    entries = json.loads(out.read_text())
    assert [entry["run"] for entry in entries] == ["benchmark", "study ssah"]
    text = page.page(entries)
    value = published_numbers("safety_layers", table="Table 1", model="gemma-2b-it").query("setting == 'unscaled'")[
        "value"
    ]
    assert f"{value.item():g} / **77**" in text
    assert text.count("**77**") == 1
    assert "| 1 of 60 |" in text
    assert "| Few units carry refusal | SSAH §3.4 | inconclusive | Without 41 units \\| 3 % refused. |" in text
    assert sc.__version__ in text
    with RunDirectory.open(tmp_path / "other", "layers grid", {"model": "x"}):
        pass
    with pytest.raises(ValueError, match="says nothing about the papers"):
        measured.entry_of(tmp_path / "other")


def test_citations_are_those_of_the_citation_file() -> None:
    import yaml

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = (ROOT / "docs/citing.md").read_text(encoding="utf-8")
    for paper in cited["references"]:
        assert paper["title"] in text
        assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in text
        assert all(author["family-names"] in text for author in paper["authors"])
    assert cited["version"] in text
