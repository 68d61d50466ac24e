"""``safecircuits report``: a run's page again, runs held against each other, and what is refused; in a browser, too."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_report import invented_page, invented_results
from test_study_ssah_page import prompts as ssah_prompts
from test_study_ssah_page import small as small_ssah

from browser import opened, require_good
from commands import refuse, succeed
from safecircuits.papers.ssah.settings import cut_by
from safecircuits.papers.ssah.study import ssah_study
from safecircuits.report.compare_runs import compared_table
from safecircuits.report.scripts import script
from safecircuits.results.load_record import command_line, load_run, run_provenance
from safecircuits.results.run import RunDirectory

SETS = ["--normal", "organism:normal", "--malicious", "organism:malicious"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs each of two commands."""
    root = tmp_path_factory.mktemp("runs")
    for name, n in (("aligned", 8), ("unaligned", 6)):
        gap = ["layers", "similarity", "--model", f"organism:{name}", *SETS, "--n", n, "--draws", 10]
        succeed(*gap, "--out", root / name)
    for name, lr in (("slow", 1e-5), ("fast", 1e-3)):
        tune = ["finetune", "--model", "organism:aligned", "--data", "organism:utility", "--n", 8, "--steps", 2]
        measured = ["--malicious", "organism:malicious", "--max-new-tokens", 4, "--eval-every", 1]
        succeed(*tune, *measured, "--lr", lr, "--no-save-model", "--out", root / name)
    return {path.name: path for path in root.iterdir()}


class TestOne:
    def test_the_page_holds_what_the_run_saved(self, runs: dict[str, Path], tmp_path: Path) -> None:
        out = tmp_path / "page.html"
        got = succeed("report", runs["aligned"], "--out", out)
        record = load_run(runs["aligned"])
        assert got.stdout.splitlines() == record["findings"]
        assert f"wrote {out}" in got.stderr
        page = out.read_text(encoding="utf-8")
        assert page.count("<svg viewBox") == len(list((runs["aligned"] / "figures").glob("*.svg")))
        assert command_line(record).replace("'", "&#39;") in page
        largest = pd.read_csv(runs["aligned"] / "tables" / "gap.csv")["gap_deg"].max()
        assert f"<td>{largest:.4g}</td>" in page
        assert not re.search(r"https?:", page.replace(script(), ""))

    def test_it_lies_in_the_run_unless_said_otherwise(self, runs: dict[str, Path], tmp_path: Path) -> None:
        copy = shutil.copytree(runs["slow"], tmp_path / "slow")
        data = json.loads(succeed("report", copy, "--json").stdout)
        assert (copy / "report.html").is_file()
        assert data["tables"]["summary"][0]["steps"] == 2
        assert data["provenance"]["command"].startswith("safecircuits finetune --model organism:aligned")
        assert data["findings"] == load_run(copy)["findings"]

    def test_a_page_that_holds_more_is_not_written_over(self, tmp_path: Path) -> None:
        with RunDirectory.open(tmp_path / "run", "study of mine", {}) as made:
            made.file("report.html").write_text("everything")
            made.say("found")
        assert "is the page that the run made itself" in refuse("report", tmp_path / "run")
        assert succeed("report", tmp_path / "run", "--out", tmp_path / "page.html").stdout == "found\n"
        assert (tmp_path / "run" / "report.html").read_text() == "everything"

    def test_a_study_of_ssah_has_the_page_that_it_made_itself(self, tmp_path: Path) -> None:
        settings = small_ssah(scenarios=(), prune=False, system=None, prefill=None, cuts={"wifv": cut_by("wifv")})
        with RunDirectory.open(tmp_path / "run", "study ssah", {"model": "organism:aligned"}) as made:
            study = ssah_study("organism:aligned", ssah_prompts(), made, settings=settings, unaligned="unaligned")
            made.file("report.html").write_text("an earlier version")
        succeed("report", tmp_path / "run")
        page, _ = study.page(run_provenance(load_run(tmp_path / "run")))
        assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == page
        [row] = [row for row in study.removed["wifv"]["zero"].rows if row.name == "SCU"]
        assert f"{row.n_units} units" in page
        shutil.rmtree(tmp_path / "run" / "results" / "groups_0")
        assert "groups_0" in refuse("report", tmp_path / "run")

    def test_the_command_can_be_typed_again(self, runs: dict[str, Path]) -> None:
        words = command_line(load_run(runs["aligned"])).split()[1:]
        assert "complete since" in succeed(*words, "--out", runs["aligned"]).stderr


class TestSeveral:
    def test_settings_and_numbers_that_differ(self, runs: dict[str, Path], tmp_path: Path) -> None:
        out = tmp_path / "both.html"
        got = succeed("report", runs["aligned"], runs["unaligned"], "--out", out, "--json")
        data = json.loads(got.stdout)
        assert data["settings"]["n"] == {"aligned": 8, "unaligned": 6}
        assert data["settings"]["model"] == {"aligned": "organism:aligned", "unaligned": "organism:unaligned"}
        assert {"contents of normal", "contents of models"} <= set(data["settings"])
        assert not {"seed", "draws", "template"} & set(data["settings"])
        rows = data["tables"]["gap"]["rows"]
        one, other = (pd.read_csv(runs[name] / "tables" / "gap.csv")["gap_deg"] for name in ("aligned", "unaligned"))
        assert [row["layer"] for row in rows] == list(range(8))
        assert [row["gap_deg [aligned]"] for row in rows] == pytest.approx(list(one))
        assert [row["gap_deg [unaligned − aligned]"] for row in rows] == pytest.approx(list(other - one))
        page = out.read_text(encoding="utf-8")
        assert "Angle gap by layer, one line a run" in page
        assert all(line in page for name in ("aligned", "unaligned") for line in data["findings"][name])

    def test_training_runs_in_one_figure(self, runs: dict[str, Path], tmp_path: Path) -> None:
        got = succeed("report", runs["slow"], runs["fast"], "--out", tmp_path / "both.html")
        assert got.stdout.splitlines()[0] == "lr  slow: 1e-05, fast: 0.001"
        page = (tmp_path / "both.html").read_text(encoding="utf-8")
        assert "Training loss by step, one line a run" in page
        assert "Malicious prompts refused by step, one line a run" in page
        assert ">slow</text>" in page
        assert ">fast</text>" in page

    def test_runs_of_one_name_are_told_apart(self, runs: dict[str, Path], tmp_path: Path) -> None:
        other = shutil.copytree(runs["slow"], tmp_path / "elsewhere" / "slow")
        data = json.loads(succeed("report", runs["slow"], other, "--out", tmp_path / "x.html", "--json").stdout)
        assert list(data["runs"])[1] == "elsewhere/slow"
        assert data["settings"] == {}
        assert "agree in every number" in (tmp_path / "x.html").read_text(encoding="utf-8")


class TestTables:
    def test_rows_are_matched_by_what_names_them(self) -> None:
        one = pd.DataFrame({"arm": ["a", "b"], "seed": [0, 0], "rate": [0.5, 1.0], "n": [3, 3], "what": ["x", "y"]})
        other = pd.DataFrame({"arm": ["b", "c"], "seed": [0, 0], "rate": [0.75, 0.25], "n": [3, 3], "what": ["y", "z"]})
        found = compared_table("t", {"one": one, "other": other})
        assert found.keys == ("arm", "seed", "what")
        rows = found.frame.set_index("arm")
        assert rows.loc["b", "rate [other − one]"] == -0.25
        assert rows.loc[["a", "c"], "rate [other − one]"].isna().all()

    def test_equal_rows_are_matched_in_order(self) -> None:
        one, other = pd.DataFrame({"layer": [0, 0], "x": [1, 2]}), pd.DataFrame({"layer": [0, 0], "x": [1, 5]})
        found = compared_table("t", {"one": one, "other": other})
        assert found.frame["x [other − one]"].tolist() == [0, 3]

    def test_a_column_that_names_the_run_names_no_row(self) -> None:
        one, other = pd.DataFrame({"model": ["a"], "x": [1]}), pd.DataFrame({"model": ["b"], "x": [1]})
        found = compared_table("t", {"one": one, "other": other})
        assert found.differing == ()
        assert found.same == ("x",)


def test_what_cannot_be_reported(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no run of safecircuits: there is no run.json in it" in refuse("report", tmp_path / "empty")
    RunDirectory.open(tmp_path / "partial", "layers grid", {})
    assert "is not complete: run the same command again" in refuse("report", tmp_path / "partial")
    line = refuse("report", runs["aligned"], runs["slow"])
    assert "'aligned' is of 'layers similarity', 'slow' of 'finetune'" in line
    assert "is given twice" in refuse("report", runs["aligned"], runs["aligned"])
    newer = shutil.copytree(runs["aligned"], tmp_path / "newer")
    record = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps(record | {"version": 9}))
    assert "has version 9; this reads version 1" in refuse("report", newer)
    (newer / "run.json").write_text(json.dumps(record))
    result = newer / "results" / "comparison" / "result.json"
    text = result.read_text()
    result.write_text(text.replace('"version": 2', '"version": 9', 1))
    assert "version 9; this reads safecircuits-result version 2" in refuse("report", runs["unaligned"], newer)
    result.write_text(text.replace('"rule"', '"ruler"', 1))
    assert "was saved by another version of safecircuits" in refuse("report", runs["unaligned"], newer)
    assert not (tmp_path / "comparison.html").exists()


class TestInABrowser:
    def test_reports_fit_every_width_in_both_schemes_and_in_print(self, runs: dict[str, Path], tmp_path: Path) -> None:
        pages = {"invented": invented_page(invented_results())}
        for name, chosen in (
            ("gap", ["aligned"]),
            ("finetune", ["fast"]),
            ("gaps compared", ["aligned", "unaligned"]),
            ("finetunes compared", ["slow", "fast"]),
        ):
            out = tmp_path / f"{name}.html"
            succeed("report", *(runs[one] for one in chosen), "--out", out)
            pages[name] = out.read_text(encoding="utf-8")
        require_good(pages, tmp_path)

    def test_a_page_that_does_not_fit_or_complains_is_seen(self, tmp_path: Path) -> None:
        with opened('<!DOCTYPE html><body><div style="width:500px">wide</div>', width=360) as shown:
            assert shown.overflow > 0
            shown.page.set_viewport_size({"width": 768, "height": 600})
            assert shown.overflow == 0
        with opened("<!DOCTYPE html><body><script>nothing()</script>") as shown:
            assert "nothing is not defined" in shown.complaints[0]
        with opened('<!DOCTYPE html><body><img src="https://example.invalid/a.png">') as shown:
            assert "asked for https://example.invalid/a.png" in shown.complaints
