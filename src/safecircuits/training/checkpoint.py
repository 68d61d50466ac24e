"""Checkpoints of a fine-tuning run: complete or absent, and enough to go on to bit-identical weights."""

from __future__ import annotations

import json
import pickle
import shutil
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Progress:
    """How far a run has come: what ``state.json`` holds beside the tensors."""

    losses: list[float]
    evaluations: list[dict[str, Any]]

    @property
    def step(self) -> int:
        return len(self.losses)


def save(
    folder: Path,
    progress: Progress,
    identity: Mapping[str, Any],
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write ``folder/step-N``: the trained slices, the optimizer, and the progress; then drop the older ones.

    The folder is renamed into place when it is complete, so a run killed while saving keeps the checkpoint before.
    """
    from safetensors.torch import save_file

    target = folder / f"step-{progress.step:08d}"
    partial = folder / f".{target.name}.{uuid.uuid4().hex[:8]}"
    partial.mkdir(parents=True)
    try:
        save_file({name: p.detach().contiguous() for name, p in trained.items()}, partial / "trained.safetensors")
        torch.save(optimizer.state_dict(), partial / "optimizer.pt")
        state = {"identity": identity, "losses": progress.losses, "evaluations": progress.evaluations}
        (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for older in _saved(folder)[:-1]:
        shutil.rmtree(older)


def resume(
    folder: Path,
    identity: Mapping[str, Any],
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Put the newest checkpoint of ``folder`` into the trained slices and the optimizer; no progress if there is none.

    Raises:
        ValueError: if the checkpoint is damaged, or was made by a run with other settings, data, model or mask.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    saved = _saved(folder)
    if not saved:
        return Progress([], [])
    try:
        state = json.loads((saved[-1] / "state.json").read_text(encoding="utf-8"))
        _require_same(saved[-1], state["identity"], json.loads(json.dumps(identity)))
        tensors = load_file(saved[-1] / "trained.safetensors")
        optimizer_state = torch.load(saved[-1] / "optimizer.pt", weights_only=True)
    except (
        OSError,
        KeyError,
        json.JSONDecodeError,
        SafetensorError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(f"the checkpoint {saved[-1]} is damaged; delete it to start from the beginning") from error
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
    optimizer.load_state_dict(optimizer_state)
    return Progress(state["losses"], state["evaluations"])


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _require_same(checkpoint: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            raise ValueError(
                f"the checkpoint {checkpoint} was made with {key} = {theirs.get(key)!r}, this run has "
                f"{ours.get(key)!r}; use another checkpoint_dir, or the same settings"
            )
