"""The SSAH study's depth of alignment: what the function says, beside the prefill curve; or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
import zoo
from safecircuits import organism
from safecircuits.behavior import alignment_depth, pressure
from safecircuits.model.sites import ModelShape
from safecircuits.papers.page import StudyPage
from safecircuits.papers.ssah.depth import DEPTH, beside_prefills
from safecircuits.papers.ssah.settings import Ssah, SsahPrompts, SsahSettings
from safecircuits.results.run import RunDirectory
from safecircuits.studies.running import Running

MALICIOUS = organism.prompts("malicious", n=6)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: sc.load_model(f"organism:{name}") for name in ("aligned", "base")}


@pytest.fixture
def study(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    loads = dict(models)
    monkeypatch.setattr(Running, "load", lambda self, source: loads[source])
    asked = SsahPrompts(safety=MALICIOUS, utility=organism.prompts("utility", n=2), malicious=MALICIOUS)
    found = {"behavior": sc.evaluate(models["aligned"], malicious=MALICIOUS)}
    found |= {"pressure_0": pressure(models["aligned"], MALICIOUS, prefill="take the", prefill_tokens=[1, 2])}
    with RunDirectory.open(tmp_path / "run", "depth", {}) as run:
        made = Ssah(
            source="aligned",
            name="aligned",
            shape=ModelShape.of(models["aligned"]),
            settings=SsahSettings(prefill="take the"),
            others={"base": "base"},
            prompts=asked,
            found=found,
            run=run,
        )
        made.loads = loads
        yield made


def test_it_is_alignment_depth_beside_the_prefill_curve(study: Any, models: dict[str, Any]) -> None:
    assert DEPTH.when(study)
    found = DEPTH.make(study)
    assert found.equals(alignment_depth(models["aligned"], models["base"], MALICIOUS))
    study.found["depth"] = found
    frame = beside_prefills(study)
    assert frame["kl"].tolist() == found.by_position.tolist()
    under = study.found["pressure_0"]
    assert frame["refused"].dropna().tolist() == [float(a.refused.double().mean()) for a in under.attempts]
    made = StudyPage()
    DEPTH.section(study, made)
    section = made.sections[0]
    assert str(found.depth()) in section.intro
    table = section.exhibits[0].tables[0]
    assert len(table.rows) == len(frame)
    assert [row[3] for row in table.rows[3:]] == ["–"] * (len(frame) - 3)
    DEPTH.then(study)
    assert study.beside is None


def test_a_base_that_is_no_pair_and_a_model_that_refuses_nothing(study: Any) -> None:
    study.loads["base"] = zoo.hooked_model("Llama-2", "bridge")
    assert not DEPTH.when(study)
    assert "the depth of alignment is not measured: the units of these two checkpoints do not correspond" in "".join(
        study.run.record["findings"]
    )
    assert study.beside is None
    refuses = study.found["behavior"]
    study.found["behavior"] = type(refuses)(torch.zeros(6, dtype=torch.bool), None, None)
    assert not DEPTH.when(study)
    study.found["behavior"] = refuses
    study.others = {}
    assert not DEPTH.when(study)
    assert DEPTH.of(study) is None
    made = StudyPage()
    DEPTH.section(study, made)
    assert made.sections == []
