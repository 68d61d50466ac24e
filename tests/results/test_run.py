"""A run directory is complete or says that it is not; the same run goes on, another is refused; foreign files stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from safecircuits.base.files import write_text
from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.interval import GapInterval
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.results.load_record import load_run
from safecircuits.results.run import AlreadyComplete, RunDirectory

FRAME = pd.DataFrame({"layer": [0, 1], "gap": [0.5, None]})


def a_result() -> GapInterval:
    return GapInterval(torch.zeros(2), torch.ones(2), (LayerRange(0, 1), None))


def complete(folder: Path, **arguments: object) -> Path:
    with RunDirectory.open(folder, "layers gap", {"seed": 0, **arguments}, inputs={"normal": "abc"}) as run:
        run.result("gap", a_result())
        run.table("gap", FRAME, main=True)
        run.figure("gap", Figure())
        run.work("sweep.jsonl").write_text("half")
        run.file("freeze.safetensors").write_text("mask")
        run.say("two\nlines")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_layout(tmp_path: Path) -> None:
    folder = complete(tmp_path / "run")
    assert files(folder) == {
        "run.json",
        "results/gap/result.json",
        "results/gap/tensors.safetensors",
        "tables/gap.csv",
        "figures/gap.svg",
        "figures/gap.pdf",
        "figures/gap.png",
        "freeze.safetensors",
    }
    record = load_run(folder)
    assert record["command"] == "layers gap"
    assert record["arguments"] == {"seed": 0}
    assert record["inputs"] == {"normal": "abc"}
    assert record["main_table"] == "tables/gap.csv"
    assert record["findings"] == ["two", "lines"]
    assert record["provenance"]["seed"] == 0
    assert record["provenance"]["versions"]["torch"]
    assert set(record["files"]) == {
        "results/gap", "tables/gap.csv", "figures/gap.svg", "figures/gap.pdf", "figures/gap.png", "freeze.safetensors"
    }  # fmt: skip
    assert GapInterval.load(folder / "results" / "gap").equals(a_result())
    pd.testing.assert_frame_equal(pd.read_csv(folder / "tables" / "gap.csv"), FRAME)


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    a, b = complete(tmp_path / "a"), complete(tmp_path / "b")
    for kind in ("svg", "pdf", "png"):
        assert (a / f"figures/gap.{kind}").read_bytes() == (b / f"figures/gap.{kind}").read_bytes()


def test_an_interrupted_run_is_not_complete_and_goes_on(tmp_path: Path) -> None:
    def interrupted() -> None:
        with RunDirectory.open(tmp_path, "layers gap", {"seed": 0}) as run:
            run.table("gap", FRAME)
            run.work("sweep.jsonl").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / "run.json").exists()
    with pytest.raises(ValueError, match="is not complete: run the same command again"):
        load_run(tmp_path)
    with RunDirectory.open(tmp_path, "layers gap", {"seed": 0}) as run:
        assert run.resumed
        assert run.work("sweep.jsonl").read_text() == "half"
    record = load_run(tmp_path)
    assert len(record["started"]) == 2
    assert not (tmp_path / "run.partial.json").exists()
    assert not (tmp_path / "work").exists()


def test_an_error_before_anything_was_written_leaves_nothing(tmp_path: Path) -> None:
    def failing(work: str | None) -> None:
        with RunDirectory.open(tmp_path / "run", "layers gap", {"seed": 0}) as run:
            path = run.work("sweep.jsonl")
            if work:
                path.write_text(work)
            raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        failing(None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="no such model"):
        failing("half")
    assert files(tmp_path / "run") == {"run.partial.json", "work/sweep.jsonl"}


def test_a_complete_run_is_not_run_again(tmp_path: Path) -> None:
    folder = complete(tmp_path / "run")
    with pytest.raises(AlreadyComplete, match="complete since") as done:
        complete(folder)
    assert done.value.run == load_run(folder)


def test_another_run_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    folder = complete(tmp_path / "run", max_length=3)
    before = (folder / "run.json").read_text()
    with pytest.raises(ValueError, match=r"--max-length was 3, is 4\. Give this one another --out"):
        complete(folder, max_length=4)
    with pytest.raises(ValueError, match="--max-length was 3, is null"):
        complete(folder)
    with pytest.raises(ValueError, match="it is of 'layers gap', not 'layers grid'"):
        RunDirectory.open(folder, "layers grid", {})
    with pytest.raises(ValueError, match="the contents of normal have changed since"):
        RunDirectory.open(folder, "layers gap", {"seed": 0, "max_length": 3}, inputs={"normal": "abd"})
    assert (folder / "run.json").read_text() == before


def test_replacing_removes_the_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    folder = complete(tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    run = RunDirectory.open(folder, "other", {}, replace=True)
    assert files(folder) == {"notes.txt", "run.partial.json"}
    run.finish()
    record = load_run(folder)
    assert record["command"] == "other"
    (tmp_path / "outside.txt").write_text("mine")
    record["files"] = ["../outside.txt", "notes.txt/../../outside.txt"]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="does not lie in"):
        RunDirectory.open(folder, "third", {}, replace=True)
    assert (tmp_path / "outside.txt").exists()
    assert files(folder) == {"notes.txt", "run.json"}


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for replace in (False, True):
        with pytest.raises(ValueError, match="holds files that are no run"):
            RunDirectory.open(tmp_path, "layers gap", {}, replace=replace)
    with pytest.raises(ValueError, match="a file of this name is in the way"):
        RunDirectory.open(tmp_path / "thesis.tex", "layers gap", {})
    assert files(tmp_path) == {"thesis.tex"}


def test_damaged_records(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run of safecircuits"):
        load_run(tmp_path)
    for text, message in (
        ("{", "is not the record of a run"),
        ('{"format": "else"}', "is not the record of a run"),
        ('{"format": "safecircuits-run", "version": 9}', "has version 9; this reads version 1"),
    ):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_run(tmp_path)


def test_settings_that_led_nowhere_do_not_keep_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def attempt(error: type[BaseException], start: str | None) -> None:
        run = RunDirectory.open(folder, "layers localize", {"start": start})
        run.table("gap", FRAME)
        run.abandon(error("no onset"))

    attempt(ValueError, None)
    assert RunDirectory.open(folder, "layers localize", {"start": None}).resumed  # the same goes on
    attempt(FloatingPointError, None)
    attempt(KeyboardInterrupt, "1,2")  # others take its place
    with pytest.raises(ValueError, match="holds an unfinished run with other settings: --start was"):
        RunDirectory.open(folder, "layers localize", {"start": "2,3"})
    with RunDirectory.open(folder, "layers localize", {"start": "1,2"}):
        pass
    assert "failed" not in load_run(folder)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        RunDirectory.open(folder, "layers localize", {"start": None})


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot write to .*file/run' \(Not a directory\); give --out a folder"):
        RunDirectory.open(tmp_path / "file" / "run", "layers gap", {})
    (tmp_path / "is_a_folder").mkdir()
    with pytest.raises(OSError, match=r"is_a_folder'$") as caught:
        write_text(tmp_path / "is_a_folder", "text")
    assert caught.value.filename == str(tmp_path / "is_a_folder")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        result = a_result().save(tmp_path / "result")
        mask = FreezeMask.layers((2, 3)).save(tmp_path / "mask.safetensors")
    finally:
        os.umask(umask)
    for path in (mask, *result.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o640


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    first = RunDirectory.open(tmp_path / "run", "layers gap", {"seed": 0})
    for seed, replace in ((0, False), (1, False), (1, True)):
        with pytest.raises(ValueError, match=r"another command is writing to .*run' just now"):
            RunDirectory.open(tmp_path / "run", "layers gap", {"seed": seed}, replace=replace)
    first.finish()
    with pytest.raises(AlreadyComplete):
        RunDirectory.open(tmp_path / "run", "layers gap", {"seed": 0})
    abandoned = RunDirectory.open(tmp_path / "other", "layers gap", {"seed": 0})
    abandoned.table("gap", FRAME)
    abandoned.abandon(KeyboardInterrupt())
    assert RunDirectory.open(tmp_path / "other", "layers gap", {"seed": 0}).resumed


def test_a_killed_run_leaves_no_lock_and_what_it_left_half_written_is_removed(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from safecircuits.base.files import replacing, replacing_folder
from safecircuits.results.run import RunDirectory
run = RunDirectory.open(sys.argv[1], "layers gap", {"seed": 0})
model = replacing_folder(run.folder / "model", "weights", lambda _: ())
with replacing(run.file("mask.safetensors")) as file, model as folder:
    file.write_text("half")
    folder.mkdir()
    (folder / "weights").write_text("half")
    run.work("sweep.jsonl").write_text("kept")
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert len(files(tmp_path)) == 4
    (tmp_path / ".notes").write_text("mine")
    run = RunDirectory.open(tmp_path, "layers gap", {"seed": 0})
    assert run.resumed
    assert files(tmp_path) == {"run.partial.json", "work/sweep.jsonl", ".notes"}
