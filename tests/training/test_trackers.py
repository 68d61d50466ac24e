"""Where a run is watched: Accelerate's trackers, by their own files, and callbacks that are told of each step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from test_finetune import DATA, SETTINGS

from safecircuits.baselines import ReverseDPO
from safecircuits.training import finetune


class Kept(GeneralTracker):
    """Keeps what it is told."""

    name = "kept"
    requires_logging_directory = False
    begun: list[Kept] = []  # noqa: RUF012  Accelerate makes it from the class, so the class is where a test finds it

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project, self.config, self.said, self.finished = project, {}, [], False
        Kept.begun.append(self)

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.said.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "kept", Kept)
    monkeypatch.setattr(Kept, "begun", [])
    return Kept


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By tag and step what the event files below a folder hold, read without the code that wrote them."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in folder.rglob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
            data = data[12 + length + 4 :]
    return found


def test_tensorboard_files_hold_each_step(make_tiny_model: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    run = finetune(
        make_tiny_model("bridge"),
        DATA,
        **SETTINGS,
        steps=5,
        report_to="tensorboard",
        report_dir=tmp_path / "board",
        callbacks=[lambda _model, step: {"half": step / 2}],
        eval_every=2,
        log=tmp_path / "log.jsonl",
    )
    written = scalars(tmp_path / "board")
    assert written["train/loss"] == pytest.approx(dict(enumerate(run.losses, start=1)))
    assert written["train/lr"] == pytest.approx({1: 5e-3, 2: 1e-2, 3: 1e-2, 4: 1e-2 * 2 / 3, 5: 1e-2 / 3})
    assert all(math.isfinite(norm) and norm > 0 for norm in written["train/grad_norm"].values())
    assert written["eval/half"] == {2: 1.0, 4: 2.0, 5: 2.5}


@pytest.mark.parametrize("kind", ["by name", "as an object", "several"])
def test_a_tracker_of_ones_own(make_tiny_model: Any, kept: type[Kept], kind: str) -> None:
    given: Any = {"by name": "kept", "as an object": Kept("mine"), "several": ["none", "kept", "kept"]}[kind]
    kept.begun[:] = [given] if kind == "as an object" else []
    told: list[Any] = []
    run = finetune(make_tiny_model("bridge"), DATA, **SETTINGS, steps=3, report_to=given, on_step=[told.append])
    (tracker,) = kept.begun
    assert tracker.finished
    assert tracker.config["lr"] == 1e-2
    assert [step for step, _ in tracker.said] == [1, 2, 3]
    assert [values["train/loss"] for _, values in tracker.said] == list(run.losses)
    assert [one["loss"] for one in told] == list(run.losses)
    assert set(told[0]) == {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}


def test_a_tracker_is_closed_when_training_fails(make_tiny_model: Any, kept: type[Kept]) -> None:
    def fails(_: Any) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        finetune(make_tiny_model("bridge"), DATA, **SETTINGS, steps=3, report_to="kept", on_step=[fails])
    assert kept.begun[0].finished


def test_reporting_changes_nothing(make_tiny_model: Any, kept: type[Kept]) -> None:
    plain = finetune(make_tiny_model("bridge"), DATA, **SETTINGS, steps=3)
    watched = finetune(make_tiny_model("bridge"), DATA, **SETTINGS, steps=3, report_to="kept", on_step=[print])
    assert watched.losses == plain.losses


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tensorbord", "report_to is one of .*tensorboard.*not 'tensorbord'"),
        ("trackio", "pip install trackio"),
        (3, "3"),
    ],
)
def test_what_is_no_tracker(make_tiny_model: Any, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        finetune(make_tiny_model("bridge"), DATA, **SETTINGS, steps=1, report_to=given)


def test_one_that_cannot_begin_is_bad_input(make_tiny_model: Any, kept: type[Kept], monkeypatch: Any) -> None:
    def no_login(_: Any) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(kept, "start", no_login)
    with pytest.raises(ValueError, match="'kept' could not begin: no API key"):
        finetune(make_tiny_model("bridge"), DATA, **SETTINGS, steps=1, report_to="kept")


def test_a_method_with_a_loop_of_its_own_refuses(make_tiny_model: Any, kept: type[Kept]) -> None:
    with pytest.raises(ValueError, match="does not take report_to"):
        finetune(make_tiny_model("bridge"), DATA, method=ReverseDPO(DATA), steps=1, report_to="kept")
