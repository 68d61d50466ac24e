"""Checkpoints of a fine-tuning run: complete or absent, and enough to go on to bit-identical weights.

``step-N`` holds the trained slices, the optimizer, what the method remembers, and the progress;
``phase-K.safetensors``, in a run of several phases, what earlier phases have trained, as phase K found it. Tensors are
whole, so that the number of processes may change.
"""

from __future__ import annotations

import json
import pickle
import shutil
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safecircuits.base.files import plain, replacing
from safecircuits.training.method import HasState, OnGradients
from safecircuits.training.sharding import sharded_like, whole


@dataclass(frozen=True)
class Progress:
    """How far a run has come: what ``state.json`` holds beside the tensors.

    Attributes:
        phase: the index of the one in which it is.
        phases: what is known of those before: steps, how much was trained and frozen, the digest.
        halted: by what a callback ended the run, if one did.
        good: the step after which the weights were copied, to go back to.
        unmeasured: whether the callbacks have not seen this step yet: one of them failed.
    """

    losses: list[float]
    evaluations: list[dict[str, Any]]
    phase: int = 0
    phases: list[dict[str, Any]] = field(default_factory=list)
    halted: dict[str, Any] | None = None
    good: int | None = None
    unmeasured: bool = False

    @property
    def step(self) -> int:
        return len(self.losses)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has been read.

    Attributes:
        start: what earlier phases have trained, by parameter name; nothing in the first phase.
        trained: the trained slices.
        optimizer: the optimizer's state dict.
        remembered: what the method remembers from step to step.
    """

    path: Path
    progress: Progress
    start: dict[str, Tensor]
    trained: dict[str, Tensor]
    optimizer: dict[str, Any]
    remembered: dict[str, Tensor]

    @torch.no_grad()
    def restore(
        self, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, hook: OnGradients | None
    ) -> None:
        """Put the trained slices and the states of optimizer and hook into those of a run that has been set up anew.

        This can be done once: what was read is let go.
        """
        for name, parameter in trained.items():
            parameter.copy_(sharded_like(self.trained[name], parameter))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = {
            i: {key: sharded_like(v, parameters[i]) if isinstance(v, Tensor) else v for key, v in values.items()}
            for i, values in self.optimizer["state"].items()
        }
        optimizer.load_state_dict({**self.optimizer, "state": state})
        if isinstance(hook, HasState):
            hook.restore(self.remembered, trained)
        for read in (self.start, self.trained, self.optimizer, self.remembered):
            read.clear()


def whole_tensors(sharded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors gathered from all processes, all of which must call this."""
    return {name: whole(tensor.detach()) for name, tensor in sharded.items()}


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state dict, gathered from all processes, all of which must call this."""
    state = optimizer.state_dict()
    gathered = {i: {key: whole(value) for key, value in values.items()} for i, values in state["state"].items()}
    return {**state, "state": gathered}


def save(
    folder: Path,
    progress: Progress,
    identity: Mapping[str, Any],
    trained: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    remembered: Mapping[str, Tensor],
) -> None:
    """Write ``folder/step-N``; then drop what is older.

    The folder is renamed into place when it is complete, so a run killed while saving keeps the checkpoint before.

    Raises:
        OSError: if it cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = folder / f"step-{progress.step:08d}"
    partial = folder / f".{target.name}.{uuid.uuid4().hex[:8]}"
    try:
        partial.mkdir(parents=True)
        for file, tensors in (("trained", trained), ("method", remembered)):
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial / f"{file}.safetensors")
        torch.save(dict(optimizer), partial / "optimizer.pt")
        state = {
            "identity": identity,
            "phase": progress.phase,
            "phases": progress.phases,
            "losses": progress.losses,
            "evaluations": progress.evaluations,
            "halted": progress.halted,
            "good": progress.good,
            "unmeasured": progress.unmeasured,
        }
        (partial / "state.json").write_text(json.dumps(state, default=plain), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _not_written(folder, f"the checkpoint of step {progress.step}", error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _drop_older(folder, progress.phase)


def save_start(folder: Path, phase: int, tensors: Mapping[str, Tensor]) -> None:
    """Write what earlier phases have trained, as ``phase`` finds it. Checkpoints of the phase before stay readable."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(_start(folder, phase)) as partial:
            save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, partial)
    except (OSError, SafetensorError) as error:
        raise _not_written(folder, f"the start of phase {phase + 1}", error) from error


def newest(folder: Path, identity: Mapping[str, Any]) -> Saved | None:
    """The newest checkpoint of a run with this identity; None if the folder has none.

    Raises:
        ValueError: if the checkpoint is damaged, or was made by a run with other settings, data, model or mask.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    saved = _saved(folder)
    if not saved:
        return None
    path = saved[-1]
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        _require_same(path, state["identity"], json.loads(json.dumps(identity, default=plain)))
        done = {name: state[name] for name in ("losses", "evaluations", "phase", "phases")}
        progress = Progress(
            **done, halted=state.get("halted"), good=state.get("good"), unmeasured=state.get("unmeasured", False)
        )
        start = load_file(_start(folder, progress.phase)) if progress.phase else {}
        trained, remembered = load_file(path / "trained.safetensors"), load_file(path / "method.safetensors")
        optimizer = torch.load(path / "optimizer.pt", weights_only=True)
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
        raise ValueError(f"the checkpoint {path} is damaged; delete it to start from the beginning") from error
    return Saved(path, progress, start, trained, optimizer, remembered)


def _drop_older(folder: Path, phase: int) -> None:
    """Remove the checkpoints before the newest, which is in ``phase``, and the starts of other phases."""
    for older in _saved(folder)[:-1]:
        shutil.rmtree(older)
    for earlier in folder.glob("phase-*.safetensors"):
        if earlier != _start(folder, phase):
            earlier.unlink()


def clear_leftovers(folder: Path, saved: Saved | None) -> None:
    """Remove what a run that was killed while saving has left behind, beside the newest checkpoint if there is one."""
    if saved is not None:
        _drop_older(folder, saved.progress.phase)
    for partial in folder.glob(".step-*") if folder.is_dir() else ():
        shutil.rmtree(partial, ignore_errors=True)
    for unfinished in folder.glob(".phase-*") if folder.is_dir() else ():
        unfinished.unlink()


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _start(folder: Path, phase: int) -> Path:
    return folder / f"phase-{phase + 1}.safetensors"


def _not_written(folder: Path, what: str, error: Exception) -> OSError:
    saved = _saved(folder)
    kept = f"the one before, {saved[-1].name}, is kept" if saved else "there is none before it"
    return OSError(f"{what} could not be written to {str(folder)!r} ({error}); {kept}")


def _require_same(checkpoint: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            if key == "weights":
                raise ValueError(
                    f"the checkpoint {checkpoint} is of a run that began with other weights (fingerprint "
                    f"{theirs.get(key)}, this model's is {ours.get(key)}): load the model that it began with anew, or "
                    "use another checkpoint_dir"
                )
            raise ValueError(
                f"the checkpoint {checkpoint} was made with {key} = {theirs.get(key)!r}, this run has "
                f"{ours.get(key)!r}; use another checkpoint_dir, or the same settings"
            )
