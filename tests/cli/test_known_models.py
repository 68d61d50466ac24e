"""``organism list`` and ``--version``: what there is, as one would load it."""

from __future__ import annotations

import json
from importlib import metadata

from typer.testing import CliRunner

import safecircuits as sc
from safecircuits.cli import app
from safecircuits.organism.smollm2.members import MEMBERS


def test_each_model_is_listed_by_what_loads_it_and_where_refusal_was_planted() -> None:
    rows = {row["model"]: row for row in json.loads(CliRunner().invoke(app, ["organism", "list", "--json"]).stdout)}
    assert {name.removeprefix("smollm2:") for name in rows if ":" in name and "smollm2" in name} == set(MEMBERS)
    for name, row in rows.items():
        if "layers" in row["planted"]:
            place = sc.organism.planted(name.removeprefix("organism:"))
            assert f"layers {place.layers[0]} to {place.layers[-1]}" in row["planted"]
    assert rows["organism:planted-units"]["planted"].endswith("192 neurons")
    assert rows["smollm2:layers-5-9"]["role"] == "judged"
    text = CliRunner().invoke(app, ["organism", "list"]).stdout
    assert all(name in text for name in rows)


def test_the_version_is_that_of_the_installed_package() -> None:
    said = CliRunner().invoke(app, ["--version"])
    assert said.exit_code == 0
    assert said.stdout.split() == ["safecircuits", metadata.version("safecircuits")]
