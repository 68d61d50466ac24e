"""The studies on a planted real model: what they ask it unless told otherwise, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from safecircuits.base.vocabulary import LayerRange
from safecircuits.cli import app
from safecircuits.cli.study_inputs import planted_layers
from safecircuits.organism.smollm2.catalog import built


class Stopped(Exception):
    """Where the model would be run."""


def asked_by(command: str, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *more: str) -> dict[str, Any]:
    """The prompts and settings with which a study would begin."""
    seen: dict[str, Any] = {}

    def study(source: str, prompts: Any, folder: Any, **given: Any) -> Any:
        seen.update(source=source, prompts=prompts, **given)
        raise Stopped

    monkeypatch.setattr(where, study)
    monkeypatch.setattr("safecircuits.model.fingerprint.fingerprint_checkpoint", lambda _: "x")
    arguments = ["study", command, "--model", "smollm2:layers-12-16", "--out", str(tmp_path / "out"), *more]
    got = CliRunner().invoke(app, arguments)
    assert isinstance(got.exception, Stopped), got.output
    return seen


LAYERS = "safecircuits.papers.safety_layers.study.safety_layers_study"
SSAH = "safecircuits.papers.ssah.study.ssah_study"


def test_safety_layers_asks_a_real_model_what_suits_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = asked_by("safety-layers", LAYERS, monkeypatch, tmp_path)
    settings, prompts = seen["settings"], seen["prompts"]
    assert (settings.detector, settings.max_new_tokens, settings.grading) == ("taught", 16, "number")
    assert settings.utility_tokens >= 40
    assert seen["base"] == "smollm2"
    assert seen["planted"] == LayerRange(12, 16)
    assert prompts.utility.require_responses()[0].split()[-2] == "is"  # "The answer is N."
    assert not set(prompts.refused) & set(prompts.measured)
    scenario = settings.scenarios[0]
    assert len(scenario.train) == settings.training.steps * settings.training.batch_size


def test_what_is_asked_for_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    more = ("--detector", "opening", "--max-new-tokens", "24", "--n", "normal=5", "--seeds", "1", "--lr", "3e-5")
    seen = asked_by("safety-layers", LAYERS, monkeypatch, tmp_path, *more)
    settings = seen["settings"]
    assert (settings.detector, settings.max_new_tokens, settings.seeds) == ("opening", 24, (0,))
    assert settings.training.lr == 3e-5
    assert len(seen["prompts"].normal) == 5


def test_ssah_asks_a_real_model_what_suits_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = asked_by("ssah", SSAH, monkeypatch, tmp_path)
    settings, prompts = seen["settings"], seen["prompts"]
    assert (settings.detector, settings.grading, seen["base"]) == ("taught", "number", "smollm2")
    assert not set(prompts.safety) & set(prompts.malicious)
    assert not set(prompts.utility) & set(prompts.measured_utility)
    assert set(settings.cuts) == {"wifv", "attribution"}


@pytest.mark.parametrize("name", built())
def test_every_member_brings_its_planted_layers(name: str) -> None:
    found = planted_layers(f"smollm2:{name}")
    if name.startswith("aligned"):
        assert found is None
    else:
        first, last = name.split("-")[1:3]
        assert found == LayerRange(int(first), int(last))
