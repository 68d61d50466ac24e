"""Every output takes the place of a file of its own kind that was written before, and of nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_run import a_result

from commands import refuse, succeed
from hostile import folder_of, record
from public_face import everything
from safecircuits.behavior.alpaca_eval import write_alpaca_eval
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.verdict import verdicts
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.organism import build
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.training.log import Log
from safecircuits.training.run import FinetuneRun

MASK = FreezeMask.layers((2, 3))
WHOLE = Completions(PromptSet("p", ("a",)), ("b",))

Writer = Callable[[Path], Any]


def _log(path: Path) -> None:
    Log(path, keep=0).write({"step": 1, "loss": 1.0})


def finetune_run() -> FinetuneRun:
    values: dict[str, Any] = {
        name: {"losses": (1.0,), "evaluations": (), "settings": {}}.get(name, 1)
        for name in inspect.signature(FinetuneRun).parameters
    }
    return FinetuneRun(**values)


WRITERS: dict[str, tuple[str, Writer]] = {
    "FreezeMask.save": ("m.safetensors", MASK.save),
    "Completions.save": ("c.jsonl", WHOLE.save),
    "Verdicts.save_lines": ("c.jsonl", verdicts(WHOLE).save_lines),
    "write_alpaca_eval": ("outputs.json", lambda path: write_alpaca_eval(WHOLE, path, "g")),
    "FinetuneRun.save": ("run.json", lambda path: finetune_run().save(path.parent)),
    "finetune(log=)": ("log.jsonl", _log),
}

THINGS: dict[str, bytes] = {
    "a paper": b"years of work\n",
    "the record of a run": b'{"format": "safecircuits-run", "version": 1, "losses": "none"}\n',
    "weights": (8).to_bytes(8, "little") + b"{}      ",
    "rows of a table": b"prompt,completion\na,b\n",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a page": b"<!DOCTYPE html><html><head><title>mine</title></head></html>",
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("writer", WRITERS)
class TestWriters:
    @pytest.mark.parametrize("thing", THINGS)
    def test_what_is_not_theirs_stays(self, tmp_path: Path, writer: str, thing: str) -> None:
        name, write = WRITERS[writer]
        (tmp_path / name).write_bytes(THINGS[thing])
        with pytest.raises(ValueError, match="is there already and is no"):
            write(tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_bytes() == THINGS[thing]

    def test_what_another_writer_wrote_stays(self, tmp_path: Path, writer: str) -> None:
        name, write = WRITERS[writer]
        for other, (its_name, makes) in WRITERS.items():
            if its_name != name:  # one name, one kind of file
                makes(tmp_path / other / its_name)
                (tmp_path / name).write_bytes((tmp_path / other / its_name).read_bytes())
                with pytest.raises(ValueError, match="is there already and is no"):
                    write(tmp_path / name)

    def test_their_own_and_empty_files_are_replaced(self, tmp_path: Path, writer: str) -> None:
        name, write = WRITERS[writer]
        (tmp_path / name).touch()  # as tempfile leaves it
        write(tmp_path / name)
        first = (tmp_path / name).read_bytes()
        assert first
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == first

    def test_a_folder_or_a_device_is_no_file(self, tmp_path: Path, writer: str) -> None:
        name, write = WRITERS[writer]
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match="is a folder"):
            write(tmp_path / name)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / name).symlink_to(tmp_path / "not mounted")
        with pytest.raises(ValueError, match="no file that can be replaced"):
            write(tmp_path / "other" / name)


def test_no_public_function_writes_without_being_in_the_table() -> None:
    """Names under which public functions and methods take a place to write to; those with a rule of their own aside."""
    folders = {
        "save_pretrained",
        "Result.save",
        "PrunedModel.save",
        "alignment_budget",
        "attack_study",
        "finetuning_study",
        "freezing_grid",
        "build",  # of the embedded stages
        "run_demo",
        "run_real_demo",
    }
    found = set()
    for path, thing in everything().items():
        name = path.rpartition(".")[2]
        members = {name: thing} | ({f"{name}.{k}": v for k, v in vars(thing).items()} if inspect.isclass(thing) else {})
        for label, function in members.items():
            if inspect.isfunction(function) and not label.rpartition(".")[2].startswith("_"):
                parameters = inspect.signature(function).parameters
                found |= {label for key in ("path", "out", "log", "out_dir") if key in parameters}
                if label.endswith(".save"):
                    found.add(label)
    covered = {writer.partition("(")[0] for writer in WRITERS} | folders
    assert found - covered == set()


class TestCommands:
    @pytest.mark.parametrize("thing", ["run.json", "tables/gap.csv", "mine.html"])
    def test_a_report_replaces_no_part_of_a_run(self, tmp_path: Path, thing: str) -> None:
        runs = [folder_of(tmp_path / name, record()) for name in ("run", "other")]
        (runs[0] / "tables").mkdir()
        (runs[0] / "tables" / "gap.csv").write_text("layer,gap_deg\n0,1\n")
        (runs[0] / "mine.html").write_text("mine")
        before = (runs[0] / thing).read_bytes()
        for given in (runs[:1], runs):
            assert "is there already and is no report" in refuse("report", *given, "--out", runs[0] / thing)
        assert (runs[0] / thing).read_bytes() == before

    def test_nor_does_it_without_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run, other = (folder_of(tmp_path / name, record()) for name in ("run", "other"))
        (run / "report.html").write_text("mine")
        assert "is there already and is no report" in refuse("report", run)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "comparison.html").write_text("mine")
        assert "is there already and is no report" in refuse("report", run, other)
        assert {(run / "report.html").read_text(), (tmp_path / "comparison.html").read_text()} == {"mine"}
        succeed("report", other)
        succeed("report", other)

    def test_runs_take_no_folder_with_other_files(self, tmp_path: Path) -> None:
        """All commands with a run directory share one rule."""
        (tmp_path / "thesis.tex").write_text("years of work")
        for words in (["demo"], ["layers", "similarity", "--model", "organism:base", *SETS]):
            assert "holds files that are no run" in refuse(*words, "--out", tmp_path)
            assert "holds files that are no run" in refuse(*words, "--out", tmp_path, "--force")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("name", ["base", "aligned", "MODEL_CARD.md"])
    def test_building_removes_no_model_of_somebody(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        if name.endswith(".md"):
            path.write_text("mine")
        else:
            path.mkdir()
            (path / "model.safetensors").write_text("mine")
        with pytest.raises(ValueError, match="is there already and is no"):
            build(tmp_path, stages=["aligned"])
        assert "is there already and is no" in refuse("organism", "build", "--out", tmp_path)
        assert [each.name for each in tmp_path.iterdir()] == [name]


SETS = ["--normal", "organism:normal", "--malicious", "organism:malicious"]


def test_a_result_replaces_a_result(tmp_path: Path) -> None:
    a_result().save(tmp_path / "result")
    a_result().save(tmp_path / "result")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        a_result().save(tmp_path / "other")
