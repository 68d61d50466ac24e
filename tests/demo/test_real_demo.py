"""The chain that the real demo runs, on embedded models in the place of the real ones; its removals by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import safecircuits as sc
from safecircuits import organism
from safecircuits.cli import app
from safecircuits.demo.real import settings as real_settings
from safecircuits.demo.real import study as real_study
from safecircuits.demo.real.removal import remove
from safecircuits.demo.real.settings import RealDemoSettings, real_demo_prompts
from safecircuits.model.checkpoint import load_checkpoint
from safecircuits.organism.smollm2.members import MEMBERS
from safecircuits.results.load_record import load_run

pytestmark = pytest.mark.slow


def test_no_request_is_in_two_sets_that_must_be_apart() -> None:
    found = real_demo_prompts(RealDemoSettings())
    for kind in ("malicious", "normal"):
        sets = [set(found[f"{kind}{rest}"]) for rest in ("", ", scored", ", without units")]
        assert [len(one) for one in sets] == [40, 32, 32]
        assert len(set.union(*sets)) == 104
    assert not set(found["task"]) & set(found["task, held out"])


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_says_where_its_answer_is(name: str) -> None:
    settings = RealDemoSettings(member=name)
    shape = sc.ModelShape("LlamaForCausalLM", 30, 576, 1536, 9, 3)
    study = real_study.RealDemoSubject(shape, 1, settings).empty()
    one, known = MEMBERS[name], study.planted
    if one.kind == "aligned":
        assert known is None
        assert study.planted_layers == ()
        return
    assert known is not None
    assert {layer for site in ("mlp", "attn") for layer in known.members(site)} == set(one.layers)
    per_layer = {"layers": 1536 + 9, "neurons": one.units, "heads": 3 * one.units}[one.kind]
    assert known.n_units() == per_layer * len(one.layers)


def test_an_unknown_member_is_refused() -> None:
    with pytest.raises(ValueError, match="no model 'smollm2:layers-12-17'"):
        RealDemoSettings(member="layers-12-17")


def test_removal_measures_what_hugging_face_would() -> None:
    """Refusals and the KL without units, beside the plain model with their weights cut out."""
    model = sc.load_model("aligned")
    malicious, normal = (organism.prompts(kind, n=6) for kind in ("malicious", "normal"))
    units = sc.score_units(model, malicious, sites=("mlp",)).top(40)
    zero = {"mlp": {layer: torch.zeros(384) for layer in range(8)}}
    how: dict[str, Any] = {"malicious": malicious, "ordinary": normal, "detector": "opening", "max_new_tokens": 8}
    found = remove(model, {"top": units}, to=zero, spare=0, known=None, **how)
    plain, tokenizer = load_checkpoint("aligned", "float32", "cpu", None)
    first = []
    for cut in (False, True):
        if cut:
            with torch.no_grad():
                for layer, which in units.members("mlp").items():
                    plain.model.layers[layer].mlp.down_proj.weight[:, list(which)] = 0
        rows = []
        for prompt in normal:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
            )
            ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
            rows.append(plain(ids).logits[0, -1].double().log_softmax(-1))
        first.append(torch.stack(rows))
    kl = (first[0].exp() * (first[0] - first[1])).sum(-1)
    assert torch.allclose(found.kl[1].double(), kl, atol=1e-4)
    assert float(found.kl[0].abs().max()) < 1e-12  # nothing is removed
    assert found.names == ("nothing", "top")
    assert found.units == (0, 40)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage with planted layers in the place of the member, its base in that of the real base."""
    names = {"smollm2": "base", "smollm2:layers-12-16": "planted-layers"}

    def load(self: Any, source: str) -> Any:
        return sc.load_model(names[source], **self.placing)

    def asked(kind: Any, split: Any, n: int, seed: int) -> Any:
        return organism.prompts(kind, split, n=n, seed=seed)

    monkeypatch.setattr(RealDemoSettings, "load", load)
    monkeypatch.setattr(real_settings, "requests", asked)
    monkeypatch.setattr(real_settings, "planted", lambda _: organism.planted("planted-layers"))
    monkeypatch.setattr(
        real_settings, "sums", lambda split, n, seed: organism.prompts("utility", split, n=n, seed=seed)
    )
    monkeypatch.setattr(real_study, "fingerprint_checkpoint", lambda source: names[source])


@pytest.mark.usefixtures("embedded")
def test_the_chain_finds_the_block_beside_the_known_answer_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    settings = RealDemoSettings(grading="exact").quick()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("safecircuits.demo.real.units.remove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            real_study.run_real_demo(out, settings)
    monkeypatch.setattr("safecircuits.demo.real.layers.decision_layers", interrupted)  # is there already
    study = real_study.run_real_demo(out, settings)
    said = {entry["effect"]: entry for entry in study.conclusions()}
    assert said["The planted model refuses, and its base does not"]["shows"] == "yes"
    decided = study.decision.layers
    assert decided is not None
    exact = decided == (3, 5)
    assert (said["The decision layers are the planted block"]["shows"] == "yes") is exact
    assert "overlap" in said["The decision layers are the planted block"]["text"]
    assert study.mask == sc.FreezeMask.layers(decided, study.shape)
    assert sc.FreezeMask.load(out / "freeze.safetensors").n_units() == study.mask.n_units()
    assert {run.arm for run in study.finetuning.runs} == {"full", "decision layers", "planted place", "other layers"}
    assert all(run.frozen_bit_identical for run in study.finetuning.runs if run.arm != "full")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(effect in page for effect in said)
    answers = study.answers["layers-12-16", "malicious"]
    shown = answers.verdicts[0] == "refuses"
    assert (answers.completions[0] in page) is shown
    assert load_run(out)["command"] == "demo"
    again = CliRunner().invoke(app, ["report", str(out), "--out", str(tmp_path / "again.html")])
    assert again.exit_code == 0, again.output
