"""What every study command writes at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import typer
from typer.testing import CliRunner

from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.study_output import write_report

SAID = [
    {"effect": "refusal falls", "paper": "SSAH", "shows": "yes", "text": "From 1 to 0."},
    {"effect": "utility stays", "paper": "SSAH", "shows": "no", "text": "From 1 to 0.5."},
]


def test_conclusions_are_the_main_table_and_the_findings(tmp_path: Path) -> None:
    app = typer.Typer()

    @run_command(app, prompts=False, model=False)
    def study(run: Run) -> None:
        run.begin()
        write_report(run, iter(SAID), lambda about: (f"page of {about['command']}", {}))

    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["--out", str(out), "--json"])
    assert json.loads(result.stdout) == SAID
    assert pd.read_csv(out / "tables" / "conclusions.csv").to_dict("records") == SAID
    assert json.loads((out / "run.json").read_text())["findings"] == [
        "     yes  refusal falls (SSAH): From 1 to 0.",
        "      no  utility stays (SSAH): From 1 to 0.5.",
    ]
    assert (out / "report.html").read_text().startswith("page of safecircuits")
