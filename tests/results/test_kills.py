"""A process killed at any of its writings: what is left is a run that goes on to what an uninterrupted one gives."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.results.load_record import load_run
from safecircuits.results.run import AlreadyComplete, RunDirectory
from safecircuits.training import Phase
from safecircuits.training.run import FinetuneRun

pytestmark = pytest.mark.slow

WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
DATA = sc.PromptSet("data", ("find a lamp", "how do i bake the cake"), ("sure", "sorry i cannot"))
PHASES = [
    Phase(FreezeMask.layers((0, 1)), steps=2),
    Phase(FreezeMask.layers(1), steps=2),
    Phase(FreezeMask.layers(1), steps=1),
]


def killed(work: Callable[[], Any], folder: Path, at: int | None) -> int:
    """Run ``work`` in a process of its own, killed before its writing number ``at`` in the folder; how many it made."""
    count = folder.parent / "count"
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return int(count.read_text()) if count.exists() else 0
    n = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal n
        if event not in WRITES or not isinstance(args[0], str | Path) or not str(args[0]).startswith(str(folder)):
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if n == at:
            os.kill(os.getpid(), 9)
        n += 1

    try:
        sys.addaudithook(hook)
        work()
        count.write_text(str(n))
    finally:
        os._exit(0)


def phases_in(folder: Path) -> tuple[FinetuneRun, dict[str, torch.Tensor]]:
    model = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer())
    run = sc.finetune(
        model,
        DATA,
        freeze=PHASES,
        batch_size=2,
        lr=1e-2,
        progress=False,
        checkpoint_dir=folder,
        checkpoint_every=1,
        log=folder.parent / f"{folder.name}.log",
    )
    return run, {name: p.clone() for name, p in model.named_parameters()}


def test_a_training_in_phases_goes_on_from_a_kill_at_any_writing(tmp_path: Path) -> None:
    want, weights = phases_in(tmp_path / "whole")
    assert [phase["steps"] for phase in want.settings["trained_phases"]] == [2, 2, 1]
    n = killed(lambda: phases_in(tmp_path / "counted"), tmp_path / "counted", None)
    assert n > 20
    for at in [*range(1, n, 1 + n // 4), n - 1]:
        folder = tmp_path / str(at)
        killed(lambda folder=folder: phases_in(folder), folder, at)
        run, found = phases_in(folder)
        assert {p.name for p in folder.iterdir()} == {"phase-3.safetensors", "step-00000005"}, at
        assert run.losses == want.losses
        for key in ("trained_phases", "weights", "phases", "frozen"):
            assert run.settings[key] == want.settings[key], (at, key)
        assert (run.frozen_digest, run.n_frozen, run.n_trainable) == (
            want.frozen_digest,
            want.n_frozen,
            want.n_trainable,
        )
        assert all(torch.equal(found[name], value) for name, value in weights.items()), at
        log = (tmp_path / f"{at}.log").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5]


def run_in(folder: Path) -> dict[str, Any]:
    with RunDirectory.open(folder, "layers gap", {"seed": 0}) as run:
        if not run.work("part").exists():
            run.work("part").write_text("1")
        run.table("gap", pd.DataFrame({"a": [1]}), main=True)
        run.say("found")
        (run.file("mask.txt")).write_text("mask")
    return load_run(folder)


def test_a_run_folder_goes_on_from_a_kill_at_any_writing(tmp_path: Path) -> None:
    run_in(tmp_path / "whole")
    files = {str(p.relative_to(tmp_path / "whole")) for p in (tmp_path / "whole").rglob("*")}
    n = killed(lambda: run_in(tmp_path / "counted"), tmp_path / "counted", None)
    assert n > 8
    for at in range(n):
        folder = tmp_path / str(at)
        killed(lambda folder=folder: run_in(folder), folder, at)
        try:
            record = run_in(folder)
        except AlreadyComplete as done:
            record = dict(done.run)
        assert {str(p.relative_to(folder)) for p in folder.rglob("*")} == files, at
        assert record["findings"] == ["found"]
        assert record["files"] == ["mask.txt", "tables/gap.csv"]


def test_what_is_not_ours_is_still_no_run(tmp_path: Path) -> None:
    for name in (".run.partial.json.notes", ".mine.12345678.json", "run.partial"):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(ValueError, match="holds files that are no run"):
            RunDirectory.open(folder, "layers gap", {"seed": 0})
        assert (folder / name).read_text() == "mine"
