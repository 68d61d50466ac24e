"""About how long commands take: what help says of it, and measuring that goes on where it was interrupted."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import typer
from benchmarks.performance import commands
from typer.testing import CliRunner

from safecircuits.cli import app, times


def said(*words: str) -> str:
    return " ".join(CliRunner().invoke(app, [*words, "--help"], terminal_width=200).output.split())


def test_help_says_about_how_long_a_command_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "times.json"
    document = {"seconds": {"units score": 41.3, "doctor": 3.1, "units sweep": 171.0}, "on": {"": "on X", "doctor": ""}}
    path.write_text(json.dumps(document))
    monkeypatch.setattr(times, "NAME", str(path))
    assert "Takes about 40 s of one core, on X. More, as in every run" in said("units", "score")
    assert "Takes about 3 min of one core, on X." in said("units", "sweep")
    assert "Takes about 5 s of one core." in said("doctor")
    reference = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "render_commands.py"))["commands"]()
    assert "# `safecircuits units sweep`\n\nTakes about 3 min of one core, on X.\n" in reference
    assert "Takes about" not in said("units", "ablate")  # not measured
    monkeypatch.setattr(times, "NAME", str(tmp_path / "none.json"))
    assert "Takes about" not in said("units", "score")


def test_what_was_measured_are_commands() -> None:
    path = Path(times.__file__).with_name(times.NAME)
    measured = json.loads(path.read_text()) if path.is_file() else {"seconds": {}, "on": {}}
    assert set(measured["seconds"]) | (set(measured["on"]) - {""}) <= set(commands.COMMANDS)
    assert all(seconds > 0 for seconds in measured["seconds"].values())


def test_commands_come_after_those_whose_runs_they_read(tmp_path: Path) -> None:
    lines, before = commands.command_lines(tmp_path), set()
    for command, line in lines.items():
        read = set(re.findall(rf"{tmp_path}/([\w-]+)", line.split(" --out ")[0])) - {"refusals", "utility", "both"}
        assert {name.replace("-", " ") for name in read} <= before
        assert {name.replace("-", " ") for name in read} <= set(commands.needs(command))
        before.add(command)


def test_measuring_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    failing = {"units sweep"}

    def runs(line: str) -> float | None:
        command = next(one for one in commands.COMMANDS if line.startswith(f"{one} "))
        ran.append(command)
        if command in failing:
            return None
        left = commands.left_by(command, tmp_path / "runs")
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_text("")
        return 7.04

    def main(*words: str) -> int:
        ran.clear()
        monkeypatch.setattr("sys.argv", ["commands", "--out", str(tmp_path / "runs"), *words])
        return commands.main()

    monkeypatch.setattr(commands, "DATA", tmp_path / "times.json")
    monkeypatch.setattr(commands, "processor_seconds", runs)
    assert main("--only", "sweep") == 1
    assert ran == ["units classify", "units sweep"]  # what it reads was lacking
    assert main("--only", "mask") == 0
    assert ran == ["mask combine", "mask show", "mask convert"]
    failing.clear()
    assert main() == 0
    assert ran == [one for one in commands.COMMANDS if not one.startswith("mask")]  # each once, the others are there
    assert main() == 0
    assert not ran
    document: dict[str, Any] = json.loads((tmp_path / "times.json").read_text())
    assert list(document["seconds"]) == list(commands.COMMANDS)
    assert document["seconds"]["mask show"] == 7.0


def test_the_page_of_the_first_report_says_what_was_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "your-model.md").read_text(encoding="utf-8")
    measured = json.loads(Path(times.__file__).with_name(times.NAME).read_text())["seconds"]
    rows = re.findall(r"^\| \d \| `([a-z ]+)`(, twice)? \| (.+?)( each)? \|$", page, flags=re.MULTILINE)
    assert len(rows) == 5
    assert [(command, said) for command, _, said, _ in rows] == [
        (command, times.rounded(measured[command])) for command, *_ in rows
    ]
    total = sum(measured[command] * (2 if twice else 1) for command, twice, *_ in rows)
    assert 6 <= total / 60 <= 7
    assert "take six to seven minutes of one CPU core" in page


def test_times_are_said_as_one_would() -> None:
    assert [times.rounded(seconds) for seconds in (0.2, 7, 8, 88, 95, 150, 3600)] == [
        "5 s", "5 s", "10 s", "90 s", "2 min", "2 min", "60 min",
    ]  # fmt: skip
    group = typer.main.get_command(app)
    inner = typer.Context(group, info_name="units", parent=typer.Context(group, info_name="safecircuits"))
    assert times.words_of(typer.Context(group, info_name="score", parent=inner)) == "units score"
