"""``safecircuits finetune`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_cli import ALIGNED, refuse, run, succeed
from test_finetune import CutOffError
from transformers import AutoModelForCausalLM

import safecircuits as sc
from safecircuits.training import frozen_digest
from safecircuits.training.session import Session

DATA = ["--data", "organism:utility", "--n", "12", "--batch-size", "4", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sc.FreezeMask.layers((0, 1)).save(tmp_path_factory.mktemp("mask") / "freeze.safetensors")


def test_it_trains_freezes_and_leaves_a_model_for_transformers(tmp_path: Path, mask_file: Path) -> None:
    curves = ["--malicious", "organism:malicious", "--eval-every", "2", "--max-new-tokens", "2"]
    said = succeed("finetune", *ALIGNED, *DATA, "--freeze", mask_file, *curves, "--out", tmp_path / "a")
    mask, before = sc.FreezeMask.load(mask_file), sc.load_model("organism:aligned")
    digest = frozen_digest(before, mask)
    assert f"frozen entries bit-identical, SHA-256 {digest}" in said.stdout
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "model")
    assert frozen_digest(after, mask) == digest
    curve = pd.read_csv(tmp_path / "a" / "tables" / "curves.csv")
    assert curve["step"].tolist() == [0, 2, 3]
    reference = sc.behavior.KLReference.of(before, sc.load_prompts("organism:malicious", n=12))
    moved = reference.divergence(sc.load_model(tmp_path / "a" / "model"))
    rates = pd.read_csv(tmp_path / "a" / "tables" / "rates.csv")
    for name, (mean, low, high) in moved.means.items():
        assert curve[f"malicious_{name}"].tolist()[::2] == pytest.approx([0, mean], rel=1e-3)
        assert rates[[name, f"{name}_low", f"{name}_high"]].iloc[0].tolist() == pytest.approx(
            [mean, low, high], rel=1e-3
        )
    assert "malicious prompts: KL to the intact model" in said.stdout
    shares = [
        sc.evaluate(model, malicious=sc.load_prompts("organism:malicious", n=12), max_new_tokens=2).shares
        for model in (before, sc.load_model(tmp_path / "a" / "model"))
    ]
    told = [str(share["malicious_refused"]) for share in shares]
    assert f"malicious refused: {told[0]} before (" in said.stdout
    assert f"), {told[1]} after (" in said.stdout
    kept = sc.FinetuneRun.load(tmp_path / "a" / "results" / "finetune")
    assert kept.steps == 3
    assert len((tmp_path / "a" / "log.jsonl").read_text().splitlines()) == 5
    # The library does the same.
    data = sc.load_prompts("organism:utility", n=12)
    mine = sc.finetune(before, data, freeze=mask, batch_size=4, lr=1e-3, progress=False)
    assert mine.losses == kept.losses
    own = dict(before.original_model.named_parameters())
    name = next(n for n in own if n.endswith("embed_tokens._original_component.weight"))
    assert torch.equal(own[name], after.get_input_embeddings().weight)
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert "model/config.json" in record["files"]
    assert not (tmp_path / "a" / "work").exists()


def test_phases_and_an_interruption(tmp_path: Path, mask_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sc.FreezeMask.layers((0, 2)).save(tmp_path / "first.safetensors")
    phases = ["--freeze", first, "--epochs", "1", "--freeze", mask_file, "--epochs", "1", "--no-save-model"]
    succeed("finetune", *ALIGNED, *DATA, *phases, "--out", tmp_path / "whole")
    write = Session._save

    def cut_off(session: Session, *arguments: object) -> None:
        write(session, *arguments)
        if session.done.step == 4:
            raise CutOffError

    command = ["finetune", *ALIGNED, *DATA, *phases, "--checkpoint-every", "1", "--out", tmp_path / "cut"]
    with monkeypatch.context() as patched:
        patched.setattr(Session, "_save", cut_off)
        with pytest.raises(CutOffError):
            run(*command)
    assert "goes on with the interrupted run" in succeed(*command).stderr
    whole, cut = (sc.FinetuneRun.load(tmp_path / name / "results" / "finetune") for name in ("whole", "cut"))
    assert cut.settings["resumed_from"] == 4
    assert (cut.losses, cut.frozen_digest) == (whole.losses, whole.frozen_digest)


def test_a_model_that_could_not_be_written_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    command = ["finetune", *ALIGNED, *DATA, "--out", tmp_path / "run"]
    with monkeypatch.context() as patched:
        patched.setattr("safecircuits.model.load.save_pretrained", full)
        assert "No space left on device" in refuse(*command)
    assert "goes on with the interrupted run" in succeed(*command).stderr
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    assert sc.FinetuneRun.load(tmp_path / "run" / "results" / "finetune").settings["resumed_from"] == 3
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_bad_input_is_one_line(tmp_path: Path, mask_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ["finetune", *ALIGNED, *DATA, "--out", tmp_path / "x"]
    assert "--eval-every needs something to evaluate" in refuse(*base, "--eval-every", "2")
    twice = ["--freeze", mask_file, "--freeze", mask_file]
    assert "2 x --freeze make as many phases" in refuse(*base, *twice, "--epochs", "1")
    assert "--steps is for one phase" in refuse(*base, "--steps", "3", "--epochs", "1")
    questions = tmp_path / "questions.txt"
    questions.write_text("how do i bake bread\n", encoding="utf-8")
    assert "has no responses" in refuse("finetune", *ALIGNED, "--data", questions, "--out", tmp_path / "x")
    other = sc.FreezeMask.layers((0, 40)).save(tmp_path / "other.safetensors")
    assert "reaches layer 40" in refuse(*base, "--freeze", other)
    assert "reaches layer 40" in refuse(*base, "--freeze", other, "--malicious", "organism:malicious")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "trains, which it does in one process" in refuse(*base)
    assert not (tmp_path / "x").exists()


def test_lora_with_a_mask_leaves_what_is_frozen(tmp_path: Path, mask_file: Path) -> None:
    lora = ["--method", "lora", "--set", "r=2", "--set", "target_modules=q_proj,v_proj", "--steps", "2"]
    data = ["--data", "organism:new_task", "--n", "8", "--batch-size", "4", "--lr", "1e-2"]
    said = succeed("finetune", *ALIGNED, *data, *lora, "--freeze", mask_file, "--out", tmp_path / "lora")
    mask = sc.FreezeMask.load(mask_file)
    after, before = AutoModelForCausalLM.from_pretrained(tmp_path / "lora" / "model"), sc.load_model("aligned")
    assert f"SHA-256 {frozen_digest(before, mask)}" in said.stdout
    assert frozen_digest(after, mask) == frozen_digest(before, mask)
    old = before.original_model.state_dict()
    moved = {
        name
        for name, value in after.state_dict().items()
        for was in (n for n in old if n.replace("._original_component", "") == name)
        if not torch.equal(value, old[was])
    }
    assert moved
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in moved)
    assert not any(f"layers.{layer}." in name for name in moved for layer in (0, 1))
