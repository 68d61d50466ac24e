"""Analyses under torchrun: two and three processes find what one finds, and fail as one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from analyses import CLOSE, EXACT, all_of_them, sweep
from launching import launch

import safecircuits as sc
from safecircuits.model.shares import columns_in_order, in_order, rows_of
from safecircuits.prompts.prompt_set import Encoded
from zoo import backends

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
HERE = Path(__file__).parent
# A HookedTransformer runs in float64, a bridge (which cannot, of transformer-lens 3.9) in float32.
KINDS = {"hooked": (2, 1e-9), "bridge": (3, 2e-5)}


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind in backends()])
def by_several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any], Any]:
    """The backend, what each of the processes found, and what this one does."""
    kind: str = request.param
    folder, (processes, _) = tmp_path_factory.mktemp(kind), KINDS[kind]
    done = launch(processes, HERE / "analyses.py", folder, kind)
    assert done.returncode == 0, done.stderr[-4000:]
    return kind, [torch.load(folder / f"{rank}.pt") for rank in range(processes)], all_of_them(kind)


def test_texts_verdicts_and_counts_are_those_of_one_process(by_several: tuple[str, list[Any], Any]) -> None:
    _, several, alone = by_several
    for found in several:
        assert {name: found[name] for name in EXACT} == {name: alone[name] for name in EXACT}


def test_statistics_are_those_of_one_process_to_rounding(by_several: tuple[str, list[Any], Any]) -> None:
    kind, several, alone = by_several
    for found in several:
        for name in CLOSE:
            for key, value in alone[name].items():
                far = (found[name][key].double() - value.double()).abs().nan_to_num().max() / value.double().abs().max()
                kept = 0 if value.dtype == torch.float64 else 1e-6  # scores of single weights are saved in float32
                assert float(far) <= max(KINDS[kind][1], kept), (name, key)
                assert torch.equal(found[name][key].isnan(), value.isnan())


def test_every_process_has_the_same_bits(by_several: tuple[str, list[Any], Any]) -> None:
    _, several, _ = by_several
    for found in several[1:]:
        for name in CLOSE:
            for key, value in found[name].items():
                assert torch.equal(value.nan_to_num(), several[0][name][key].nan_to_num()), (name, key)


def test_one_process_may_work_alone(by_several: tuple[str, list[Any], Any]) -> None:
    _, several, alone = by_several
    assert several[0]["by_main_alone"] == alone["completions"][: len(several[0]["by_main_alone"])]
    assert several[1]["by_main_alone"] == []


def test_all_processes_raise_the_same_error(by_several: tuple[str, list[Any], Any]) -> None:
    _, several, _ = by_several
    assert all(found["errors"] == several[0]["errors"] for found in several)
    errors = several[0]["errors"]
    assert "differs from process 0 in its prompts (6 of them" in errors["prompts"]
    assert "differs from process 0 in its model" in errors["models"]
    assert "differs from process 0 in its work" in errors["other base"]
    if len(several) == 2:
        assert "are divided among processes (tensor parallel, FSDP): inside a layer each" in errors["tensor parallel"]
    assert errors["one fails"] == "FloatingPointError: this process alone"


@pytest.mark.parametrize("stop", ["interrupted", "killed"])
def test_what_was_finished_is_kept_and_goes_on_with_another_number(stop: str, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", sweep(tmp_path / "whole")
    ended = launch(2, HERE / "analyses.py", run, stop)
    assert ended.returncode != 0
    kept = (run / "work" / "sweep.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) > 2
    assert not (run / "run.json").exists()
    if stop == "interrupted":
        done = launch(3, HERE / "analyses.py", run, "sweep")
        assert done.returncode == 0, done.stderr[-4000:]
        found = sc.Localization.load(run / "results" / "localization")
    else:
        found = sweep(run)
    assert found.to_frame().equals(whole.to_frame())


def test_commands_print_write_and_fail_once(tmp_path: Path) -> None:
    command = ["-m", "safecircuits", "layers", "similarity", "--model", "aligned", "--normal", "organism:normal"]
    command += ["--malicious", "organism:malicious", "--n", "9", "--out", tmp_path / "run"]
    done = launch(2, *command)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("largest gap") == 1
    assert done.stderr.count("report.html") == 1
    assert sc.load_run(tmp_path / "run")["arguments"]["n"] == 9
    again = launch(2, *command)
    assert again.stdout == done.stdout
    assert again.stderr.count("holds this very run") == 1
    failed = launch(2, *command, "--where", "kind=x")
    assert failed.returncode != 0
    assert failed.stderr.count("error: ") == 1
    large = tmp_path / "large"
    large.mkdir()
    sizes = {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 200, "num_attention_heads": 128}
    (large / "config.json").write_text(json.dumps({"model_type": "llama"} | sizes))
    full = launch(2, *command[:5], large, *command[6:-1], tmp_path / "other")
    assert full.returncode != 0
    assert full.stderr.count("error: ") == 1
    assert re.search(r"out of memory on the device: the weights take .* GB, but .* free", full.stderr)
    trains = launch(2, "-m", "safecircuits", "demo", "--out", tmp_path / "demo")
    assert trains.stderr.count("'safecircuits demo' trains, which it does in one process") == 1
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 7, 64])
def test_each_row_is_one_processs_and_all_have_as_much(n: int, processes: int) -> None:
    lengths = torch.randint(1, 90, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    examples = [Encoded((0,) * length, length) for length in lengths]
    shares = [rows_of(process, processes, examples) for process in range(processes)]
    assert sorted(row for share in shares for row in share) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    tokens = [sum(lengths[row] for row in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


def test_parts_come_back_in_order() -> None:
    assert in_order([([1, 2], ["b", "c"]), ([0], ["a"])]) == ["a", "b", "c"]
    values = torch.arange(12).reshape(3, 4)
    parts = [([1, 3], values[:, [1, 3]]), ([0, 2], values[:, [0, 2]])]
    assert torch.equal(columns_in_order(parts), values)
