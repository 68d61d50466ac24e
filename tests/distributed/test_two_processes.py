"""Two processes over gloo train what one process trains, with DDP and with FSDP2."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from launching import launch
from scenarios import SCENARIOS, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
]
HERE = Path(__file__).parent
# Only the order of sums differs, in float64 or float32; bfloat16 rounds batches of another shape differently.
TOLERANCE = {"float64": (1e-9, 1e-7), "float32": (1e-5, 1e-5), "bf16": (3e-2, 5e-2)}
LOSS_TOLERANCE, WEIGHT_TOLERANCE = TOLERANCE["float64"]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the facts of process 0 after both processes have run all scenarios."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("resumed", "resumed sharded"):
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint_dir=folder / f"{name} from one", checkpoint_every=2, callbacks=[interrupt], eval_every=5)
    done = launch(2, HERE / "scenarios.py", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "facts 0.json").read_text(encoding="utf-8"))


def interrupt(_model: Any, step: int) -> None:
    if step == 5:
        raise KeyboardInterrupt


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    far = {name: float((found[name] - value).abs().max()) for name, value in expected.items()}
    assert max(far.values()) <= tolerance, {name: d for name, d in far.items() if d > tolerance}


def precision_of(scenario: dict[str, Any]) -> str:
    return scenario.get("mixed_precision") or str(scenario.get("dtype", "float64")).removeprefix("torch.")


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_train_what_one_trains(name: str, by_two: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = by_two
    expected, alone = run(**SCENARIOS[name])
    found = facts[name]
    loss_tolerance, weight_tolerance = TOLERANCE[precision_of(SCENARIOS[name])]
    assert found["losses"] == pytest.approx(alone["losses"], rel=loss_tolerance)
    assert_close(load_file(folder / f"{name}.safetensors"), expected, weight_tolerance)
    assert found["digest"] == found["digest_now"] == alone["digest"] == alone["digest_now"]
    assert [e["step"] for e in found["evaluations"]] == [e["step"] for e in alone["evaluations"]]
    for two, one in zip(found["evaluations"], alone["evaluations"], strict=True):
        assert two["top"] == pytest.approx(one["top"], rel=10 * weight_tolerance)
    assert found["processes"] == 2
    assert found["sharded"] is SCENARIOS[name].get("shard", False)
    share = found["held"] / found["n_trainable"]  # of what trains, in the memory of one process
    assert share < 0.6 if found["sharded"] else share == 1
    assert found["requires_grad"]


@pytest.mark.parametrize("name", ["resumed", "resumed sharded"])
def test_a_run_goes_on_with_another_number_of_processes(name: str, by_two: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = by_two
    expected, alone = run()
    assert facts[name]["resumed_from"] == 4
    assert facts[name]["losses"] == pytest.approx(alone["losses"], rel=LOSS_TOLERANCE)
    assert_close(load_file(folder / f"{name}.safetensors"), expected, WEIGHT_TOLERANCE)
    lines = (folder / f"{name}.log").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in line] == [5, 6]  # written by one process
    assert [p.name for p in (folder / f"{name} by two").iterdir()] == ["step-00000006"]
    found, back = run(checkpoint_dir=folder / f"{name} by two")
    assert back["resumed_from"] == 6
    assert_close(found, expected, WEIGHT_TOLERANCE)


def test_what_goes_wrong_is_one_error_on_every_process(by_two: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = by_two
    for rank in (0, 1):
        errors = json.loads((folder / f"facts {rank}.json").read_text(encoding="utf-8"))["errors"]
        assert "ValueError: process 1 runs with lr = 0.1, process 0 with 0.01: every process" in errors["disagreement"]
        assert errors["full disk"] == "OSError: No space left on device"
        assert "use 'adamw'" in errors["adafactor"]


def test_the_tolerance_would_see_a_wrong_gradient() -> None:
    """What forgetting to weigh by tokens, or one example of a step, would look like."""
    expected, alone = run()
    changed, other = run(grad_accumulation=1)
    assert abs(other["losses"][0] - alone["losses"][0]) > 1e3 * LOSS_TOLERANCE
    assert max(float((changed[n] - v).abs().max()) for n, v in expected.items()) > 1e3 * WEIGHT_TOLERANCE
