"""The two fingerprints of a model: of its files, and of its weights in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import safecircuits as sc
from safecircuits.model.fingerprint import fingerprint_checkpoint, weights_fingerprint
from safecircuits.model.load import save_pretrained


def test_of_weights_in_memory(make_tiny_model: Any, tmp_path: Path) -> None:
    model = make_tiny_model("bridge")
    found = weights_fingerprint(model)
    assert found == weights_fingerprint(make_tiny_model("bridge"))
    assert found == weights_fingerprint(sc.load_model(save_pretrained(model, tmp_path / "m")))
    assert found != weights_fingerprint(make_tiny_model("bridge", 1))
    assert found != weights_fingerprint(make_tiny_model("bridge", dtype=torch.bfloat16))
    data = sc.PromptSet("d", ("make tea", "find a lamp"), ("sure", "it is here"))
    sc.finetune(model, data, steps=1, batch_size=2, lr=1e-3)
    assert found != weights_fingerprint(model)


def test_of_files(make_tiny_model: Any, tmp_path: Path) -> None:
    folder = save_pretrained(make_tiny_model("bridge"), tmp_path / "m")
    found = fingerprint_checkpoint(folder)
    assert found == fingerprint_checkpoint(save_pretrained(make_tiny_model("bridge"), tmp_path / "again"))
    (folder / "notes.txt").write_text("not a part of it")
    assert fingerprint_checkpoint(folder) == found
    with (folder / "config.json").open("a") as file:
        file.write(" ")
    assert fingerprint_checkpoint(folder) != found
    assert fingerprint_checkpoint("some/hub-id") is None
