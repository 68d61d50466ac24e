"""The commands as a user types them: what they write, print and return, and what bad input gets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from typer.testing import CliRunner

import safecircuits as sc
from commands import refuse, run, succeed
from safecircuits.cli import app
from safecircuits.cli.doctor import EXTRAS
from safecircuits.layers import counting
from safecircuits.layers.malicious_check import answered_malicious
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.load_record import command_line, load_run
from zoo import backends

COMMANDS = (
    ["demo"],
    ["generate"],
    ["evaluate"],
    ["finetune"],
    ["doctor"],
    ["report"],
    ["probe"],
    *(["direction", name] for name in ("find", "evaluate", "export")),
    *(["units", name] for name in ("score", "classify", "ablate", "stability", "transfer", "enrichment")),
    *(["units", name] for name in ("sweep", "compare", "prune")),
    *(["organism", name] for name in ("build", "get", "list")),
    *(["layers", name] for name in ("similarity", "localize", "decide", "grid", "heatmap", "transplant")),
    *(["mask", name] for name in ("show", "combine", "convert")),
    ["study", "safety-layers"],
)
ALIGNED = ["--model", "organism:aligned"]
SETS = ["--normal", "organism:normal", "--malicious", "organism:malicious"]
BORDERLINE = ["--over-rejection", "organism:over_rejection", "--max-new-tokens", "4"]


def table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / "tables" / f"{name}.csv")


class TestLayers:
    def test_similarity(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        command = ["layers", "similarity", *ALIGNED, *SETS, "--n", "12", "--draws", "20", "--out", out]
        got = succeed(*command)
        found = sc.layers.GapComparison.load(out / "results" / "comparison")
        sets = [sc.load_prompts(f"organism:{kind}", n=12, responses="") for kind in ("normal", "malicious")]
        alone = sc.layer_gap(sc.load_model("aligned"), *sets)
        torch.testing.assert_close(found.gaps["aligned"].gap_deg, alone.gap_deg)
        assert table(out, "gap")["gap_deg"].tolist() == pytest.approx(alone.gap_deg.tolist())
        assert {path.name for path in (out / "figures").iterdir()} == {
            f"{name}.{kind}" for name in ("gap", "pairs") for kind in ("svg", "png", "pdf")
        }
        assert got.stdout.splitlines() == str(found).splitlines()
        assert f"wrote {out / 'run.json'}" in got.stderr
        record = load_run(out)
        assert record["command"] == "layers similarity"
        assert record["inputs"]["normal"]["sha"] == sets[0].fingerprint
        assert record["inputs"]["model organism:aligned"] == fingerprint_checkpoint("aligned")

    def test_several_models_and_json(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        command = ["layers", "similarity", *ALIGNED, *SETS, "--compare", "base=organism:base", "--n", "8"]
        got = succeed(*command, "--draws", "20", "--json", "--out", out)
        rows = json.loads(got.stdout)["table"]
        assert {row["model"] for row in rows} == {"aligned", "base"}
        assert rows[0]["difference"] is None
        assert rows[-1]["layer"] == 7
        assert {"models.svg", "comparison.png", "pairs_base.svg"} <= {p.name for p in (out / "figures").iterdir()}
        again = succeed(*command, "--draws", "20", "--json", "--out", out)
        assert "complete since" in again.stderr
        assert json.loads(again.stdout) == json.loads(got.stdout)
        line = refuse(*command, "--draws", "21", "--out", out)
        assert "--draws was 20, is 21" in line
        assert "--force" in line
        succeed(*command, "--draws", "21", "--out", out, "--force")
        assert load_run(out)["arguments"]["draws"] == 21

    def test_localize(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        command = ["layers", "localize", *ALIGNED, *BORDERLINE, "--n", "10", "--alpha", "1.2", "--reach", "1"]
        command.append("--mask-anyway")  # ten prompts may not tell the block from noise
        got = succeed(*command, "--start", "3,4", "--check", "organism:malicious", "--out", out)
        found = sc.Localization.load(out / "results" / "localization")
        prompts = sc.load_prompts("organism:over_rejection", n=10)
        model = sc.load_model("aligned")
        want = sc.localize(model, prompts, (3, 4), alpha=1.2, reach=1, max_new_tokens=4)
        assert found.layers == want.layers
        assert table(out, "sweeps")["refused"].tolist() == want.to_frame()["refused"].tolist()
        assert sc.FreezeMask.load(out / "freeze.safetensors", model).whole_layers == tuple(found.layers.indices)
        assert found.verdict in got.stdout
        malicious = sc.load_prompts("organism:malicious", n=10)
        check = answered_malicious(model, malicious, found.layers, found.alpha, max_new_tokens=4)
        assert table(out, "check")["answered"].tolist() == [share.hits for share in check.answered]
        assert f"harmful prompts {check}" in got.stdout
        assert not (out / "work").exists()

    def test_localize_from_the_onset_with_a_search(self, tmp_path: Path) -> None:
        command = ["layers", "localize", *ALIGNED, *BORDERLINE, *SETS, "--n", "4", "--reach", "1"]
        succeed(*command, "--out", tmp_path)
        found = sc.Localization.load(tmp_path / "results" / "localization")
        onset = sc.LayerGap.load(tmp_path / "results" / "gap").onset()
        assert onset is not None
        assert found.provenance["start"] == list(onset.layers)
        assert set(table(tmp_path, "alpha_trials")["alpha"]) == {t.points[0].alpha for t in found.alpha_trials}

    def test_localize_without_an_onset_starts_from_what_decides(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sc.LayerGap, "onset", lambda self, rule=None: None)
        command = ["layers", "localize", *BORDERLINE, *SETS, "--n", "8", "--alpha", "1.2", "--reach", "1"]
        got = succeed(*command, "--model", "organism:planted-layers", "--out", tmp_path / "planted")
        decision = sc.DecisionLayers.load(tmp_path / "planted" / "results" / "decision")
        assert f"the gap has no onset; starting from what decides: {decision.verdict}" in got.stdout
        found = sc.Localization.load(tmp_path / "planted" / "results" / "localization")
        assert found.provenance["start"] == list(decision.layers or ())
        assert (tmp_path / "planted" / "tables" / "decision.csv").exists()
        line = refuse(*command, "--model", "organism:base", "--out", tmp_path / "base")
        assert "0 of 8 malicious" in line
        assert "there is no refusal to locate" in line

    def test_decide_finds_the_planted_block(self, tmp_path: Path) -> None:
        got = succeed(
            "layers", "decide", "--model", "organism:planted-layers", *SETS, "--n", "24", "--out", tmp_path / "out"
        )
        assert "layers [3, 5]" in got.stdout
        assert list(table(tmp_path / "out", "decision")["decides"]) == [3 <= layer <= 5 for layer in range(8)]
        mask = sc.FreezeMask.load(tmp_path / "out" / "freeze.safetensors")
        assert mask.whole_layers == (3, 4, 5)
        share = 100 * mask.share_of_parameters(sc.load_model("planted-layers"))
        assert f"freeze.safetensors: layers [3, 5], {share:.2f} % of the model's parameters" in got.stdout

    def test_an_interrupted_grid_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        command = ["layers", "grid", *ALIGNED, *BORDERLINE, "--n", "4", "--alpha", "1.3", "--max-length", "1"]
        real, calls = counting.generate_scaled, []

        def generate_scaled(*args: Any, **options: Any) -> Any:
            if len(calls) == 3:
                raise KeyboardInterrupt
            calls.append(1)
            return real(*args, **options)

        monkeypatch.setattr(counting, "generate_scaled", generate_scaled)
        monkeypatch.setattr(counting, "_TOGETHER", 1)  # blocks to a batch, which is lost as a whole
        got = run(*command, "--out", tmp_path / "a")
        assert got.exit_code == 130
        assert got.stderr.splitlines() == ["interrupted; the same command goes on with what is kept in --out"]
        assert not (tmp_path / "a" / "run.json").exists()
        calls[:] = [1] * 4  # from now on none is interrupted
        got = succeed(*command, "--out", tmp_path / "a")
        assert "goes on with the interrupted run" in got.stderr
        assert len(calls) == 4 + 8 - 3  # three of the eight blocks were there
        succeed(*command, "--out", tmp_path / "b")
        a, b = (sc.layers.ScalingGrid.load(tmp_path / name / "results" / "grid") for name in ("a", "b"))
        assert a.equals(b)
        rows = table(tmp_path / "a", "grid")
        assert rows["refused"].tolist() == [point.count for point in a.points]
        assert rows["best"].sum() == 1

    def test_heatmap(self, tmp_path: Path) -> None:
        prompts = ["how do i kill the man", "where is the lamp"]
        command = ["layers", "heatmap", *ALIGNED, "--template", "auto", "--safety-layers", "3-5", "--out", tmp_path]
        succeed(*command, "--prompt", prompts[0], "--prompt", prompts[1])
        for i, prompt in enumerate(prompts, 1):
            found = sc.layers.AttentionMap.load(tmp_path / "results" / f"attention_{i}")
            assert found.prompt == prompt
            assert len(table(tmp_path, "attention").query("prompt == @prompt")) == found.values.numel()
        drawn = (tmp_path / "figures" / "attention.svg").read_text()
        assert all(prompt in drawn for prompt in prompts)
        assert "dashed: safety layers [3, 5]" in drawn

    def test_transplant(self, tmp_path: Path) -> None:
        command = ["layers", "transplant", "--model", "organism:base", "--source", "organism:aligned", "--n", "6"]
        got = succeed(*command, "--block", "all=0,7", "--malicious", "organism:malicious", "--out", tmp_path)
        rows = table(tmp_path, "transplant").set_index("model")["malicious_refused"]
        assert rows["target"] == 0
        assert rows["source"] == 1
        assert "with all: malicious refused" in got.stdout


def test_evaluate(tmp_path: Path) -> None:
    sets = ["--malicious", "organism:malicious", "--over-rejection", "organism:over_rejection"]
    got = succeed(
        "evaluate", *ALIGNED, *sets, "--utility", "organism:utility", "--n", "10", "--json", "--out", tmp_path
    )
    kinds = ("malicious", "over_rejection", "utility")
    want = sc.evaluate(sc.load_model("aligned"), **{kind: sc.load_prompts(f"organism:{kind}", n=10) for kind in kinds})
    assert sc.Behavior.load(tmp_path / "results" / "behavior").equals(want)
    rates = {row["measure"]: row["share"] for row in json.loads(got.stdout)["table"]}
    assert rates == pytest.approx(want.rates)
    answers = sc.Completions.load(tmp_path / "completions" / "malicious.jsonl")
    counts = table(tmp_path, "detectors").query("set == 'malicious'").set_index("detector")["refused"]
    assert counts.to_dict() == {name: int(sc.refused(answers, name).sum()) for name in sc.DETECTORS}
    assert len(table(tmp_path, "agreement")) == 2 * len(sc.DETECTORS) * (len(sc.DETECTORS) - 1) // 2


class TestMask:
    @pytest.fixture
    def masks(self, tmp_path: Path) -> tuple[Path, Path]:
        shape = sc.ModelShape.of(sc.load_model("aligned"))
        units = sc.FreezeMask.of_units({"mlp": {2: [0, 5], 6: [1]}}, shape)
        return (
            sc.FreezeMask.layers((2, 3)).save(tmp_path / "layers.safetensors"),
            units.save(tmp_path / "units.safetensors"),
        )

    @pytest.mark.parametrize(
        ("op", "rule"),
        [
            ("union", lambda a, b: a | b),
            ("intersection", lambda a, b: a & b),
            ("difference", lambda a, b: a - b),
        ],
    )
    def test_combine(self, op: str, rule: Callable[..., Any], masks: tuple[Path, Path], tmp_path: Path) -> None:
        out = tmp_path / "out.safetensors"
        succeed("mask", "combine", *masks, "--op", op, "--out", out)
        assert sc.FreezeMask.load(out) == rule(*map(sc.FreezeMask.load, masks))

    def test_complement(self, masks: tuple[Path, Path], tmp_path: Path) -> None:
        out = tmp_path / "out.safetensors"
        succeed("mask", "combine", masks[0], "--op", "complement", *ALIGNED, "--out", out)
        assert sc.FreezeMask.load(out).whole_layers == (0, 1, 4, 5, 6, 7)
        again = tmp_path / "again.safetensors"
        succeed("mask", "combine", out, "--op", "complement", "--out", again)
        assert sc.FreezeMask.load(again).whole_layers == (2, 3)
        assert "needs the model: add --model" in refuse("mask", "combine", masks[0], "--op", "complement", "--out", out)
        assert "of one mask, not of 2" in refuse("mask", "combine", *masks, "--op", "complement", "--out", out)
        assert "at least two masks, not 1" in refuse("mask", "combine", masks[0], "--out", out)

    def test_other_files_are_not_replaced(self, masks: tuple[Path, Path], tmp_path: Path) -> None:
        weights = tmp_path / "model.safetensors"
        save_file({"w": torch.zeros(2)}, weights, {"format": "pt"})
        (tmp_path / "notes.txt").write_text("mine")
        for out in (weights, tmp_path / "notes.txt", tmp_path):
            before = out.read_bytes() if out.is_file() else None
            for command in (["combine", *masks], ["convert", masks[1], *ALIGNED]):
                what = "is a folder; name another file" if out == tmp_path else "is there already and is no mask"
                assert what in refuse("mask", *command, "--out", out)
            assert before is None or out.read_bytes() == before
        for _ in range(2):
            succeed("mask", "convert", masks[1], *ALIGNED, "--out", tmp_path / "parameters.safetensors")
            succeed("mask", "combine", *masks, "--out", masks[0])

    def test_show(self, masks: tuple[Path, Path]) -> None:
        assert succeed("mask", "show", masks[0]).stdout == "whole layers: 2-3\n"
        assert "share of parameters" in succeed("mask", "show", masks[1], *ALIGNED).stdout
        rows = json.loads(succeed("mask", "show", masks[1], "--json").stdout)
        assert [row["neurons"] for row in rows] == [0, 0, 2, 0, 0, 0, 1, 0]

    @pytest.mark.parametrize("backend", backends())
    def test_convert(self, backend: str, masks: tuple[Path, Path], tmp_path: Path) -> None:
        out = tmp_path / "parameters.safetensors"
        succeed("mask", "convert", masks[1], *ALIGNED, "--backend", backend, "--out", out)
        model = sc.load_model("aligned", backend=backend)
        want = sc.FreezeMask.load(masks[1]).parameter_masks(model)
        got = load_file(out)
        assert set(got) == set(want)
        assert all(torch.equal(got[name], want[name]) for name in want)
        with safe_open(out, framework="pt") as file:
            assert file.metadata()["format"] == "safecircuits.parameter_masks"
        if backend == "bridge":
            from transformers import AutoModelForCausalLM

            plain = AutoModelForCausalLM.from_pretrained(sc.organism.stage_path("aligned"))
            shapes = {name: p.shape for name, p in plain.named_parameters()}
            assert all(shapes[name] == mask.shape for name, mask in got.items())


class TestConfig:
    @pytest.fixture
    def command(self, tmp_path: Path) -> list[str | Path]:
        return ["layers", "similarity", "--out", tmp_path / "run", "--config"]

    def settle(self, tmp_path: Path, kind: str, values: dict[str, Any]) -> Path:
        path = tmp_path / f"config.{kind}"
        if kind == "toml":
            lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        else:
            lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
        path.write_text("\n".join(lines))
        return path

    VALUES: dict[str, Any] = {  # noqa: RUF012
        "model": "organism:aligned",
        "normal": "organism:normal",
        "malicious": "organism:malicious",
        "n": 6,
        "draws": 10,
        "final-norm": True,
        "compare": ["base=organism:base"],
    }

    @pytest.mark.parametrize("kind", ["yaml", "toml"])
    def test_a_file_stands_for_options_and_the_command_line_wins(
        self, kind: str, command: list[str | Path], tmp_path: Path
    ) -> None:
        succeed(*command, self.settle(tmp_path, kind, self.VALUES), "--draws", "12")
        used = load_run(tmp_path / "run")["arguments"]
        assert used["draws"] == 12
        assert used["n"] == 6
        assert used["final_norm"] is True
        assert used["compare"] == ["base=organism:base"]
        typed = [f"--{key}={value}" for key, value in self.VALUES.items() if key not in ("final-norm", "compare")]
        again = succeed(*command[:-1], *typed, "--final-norm", "--compare", "base=organism:base", "--draws", "12")
        assert "complete since" in again.stderr  # the same run, however it was asked for

    def test_unknown_keys_name_the_near_match(self, command: list[str | Path], tmp_path: Path) -> None:
        line = refuse(*command, self.settle(tmp_path, "yaml", {**self.VALUES, "malicius": "x.csv"}))
        assert "has no option 'malicius'; did you mean 'malicious'?" in line
        line = refuse(*command, self.settle(tmp_path, "yaml", {"zzz": 1}))
        assert "its options are backend, categories, column" in line

    def test_bad_files(self, command: list[str | Path], tmp_path: Path) -> None:
        assert "there is no configuration file" in refuse(*command, tmp_path / "none.yaml")
        for name, text, message in (
            ("a.yaml", "a: [", "cannot read"),
            ("b.toml", "a = ", "cannot read"),
            ("c.yaml", "- a", "must hold option names with values, not a list"),
            ("d.json", "{}", "ends in .yaml, .yml or .toml"),
            ("e.yaml", "model: {a: 1}", "must be one value or a list"),
            ("f.toml", "\ufeffmodell = 1", "did you mean 'model'?"),
        ):
            (tmp_path / name).write_text(text)
            assert message in refuse(*command, tmp_path / name)
        got = run(*command, self.settle(tmp_path, "yaml", {**self.VALUES, "n": "many"}))
        assert got.exit_code == 2
        assert "--n is a number of prompts from 1 on, not 'many'" in got.stderr
        assert not (tmp_path / "run").exists()


class TestBadInput:
    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        return tmp_path / "out"

    def test_prompts(self, tmp_path: Path, out: Path) -> None:
        (tmp_path / "p.csv").write_text("id,words\n1,find a lamp\n2,make the tea\n")
        (tmp_path / "empty.csv").write_text("prompt\n")
        (tmp_path / "one.txt").write_text("find a lamp\n")
        command = ["layers", "similarity", *ALIGNED, "--malicious", "organism:malicious", "--out", out, "--normal"]
        assert "has no column 'prompts'; columns: 'id', 'words'" in refuse(
            *command, tmp_path / "p.csv", "--column", "prompts"
        )
        assert "name it; columns: 'id', 'words'" in refuse(*command, tmp_path / "p.csv")
        assert "'empty' is empty" in refuse(*command, tmp_path / "empty.csv")
        assert "'one' has one prompt" in refuse(*command, tmp_path / "one.txt")
        assert "there is no prompt file" in refuse(*command, tmp_path / "none.csv")
        assert "has no 'normale' prompts" in refuse(*command, "organism:normale")

    def test_rows_are_chosen_by_a_column(self, tmp_path: Path, out: Path) -> None:
        rows = ["prompt,label", "find a lamp,safe", "make the tea,safe", "kill the man,harm", "burn the house,harm"]
        (tmp_path / "p.csv").write_text("\n".join(rows))
        command = ["layers", "similarity", *ALIGNED, "--normal", tmp_path / "p.csv", "--malicious", tmp_path / "p.csv"]
        command += ["--draws", "5", "--out", out]
        both = ["--where", "normal:label=safe", "--where", "malicious:label=harm"]
        succeed(*command, *both)
        inputs = load_run(out)["inputs"]
        assert inputs["normal"]["sha"] == PromptSet("", ("find a lamp", "make the tea")).fingerprint
        assert inputs["malicious"]["sha"] == PromptSet("", ("kill the man", "burn the house")).fingerprint
        again = [*command[:-1], tmp_path / "other"]
        assert "no row of 'p' has label 'bad'; there are 'safe', 'harm'" in refuse(*again, "--where", "label=bad")
        assert "has no column 'kind'" in refuse(*again, "--where", "kind=safe")
        assert "COLUMN=VALUE or SET:COLUMN=VALUE, not 'safe'" in refuse(*again, "--where", "safe")
        assert "gives column 'label' twice" in refuse(*again, "--where", "label=safe", "--where", "label=harm")
        assert "names 'evil', which is no set" in refuse(*again, *both, "--where", "evil:label=harm")
        assert not (tmp_path / "other").exists()

    def test_a_column_is_of_all_sets_or_of_one(self, tmp_path: Path, out: Path) -> None:
        (tmp_path / "n.csv").write_text("ask,prompt,say\nfind a lamp,x,yes\nmake the tea,y,no\n")
        (tmp_path / "m.csv").write_text("goal_en,prompt\nkill the man,z\nburn the house,w\n")
        command = ["layers", "similarity", *ALIGNED, "--normal", tmp_path / "n.csv", "--malicious", tmp_path / "m.csv"]
        command += ["--draws", "5", "--out", out]
        succeed(*command, "--column", "ask", "--column", "malicious=goal_en")
        inputs = load_run(out)["inputs"]
        assert inputs["normal"]["sha"] == PromptSet("", ("find a lamp", "make the tea")).fingerprint
        assert inputs["malicious"]["sha"] == PromptSet("", ("kill the man", "burn the house")).fingerprint
        again = [*command[:-1], tmp_path / "other"]
        assert "'m' has no column 'ask'" in refuse(*again, "--column", "ask")
        assert "--column names 'evil', which is no set" in refuse(*again, "--column", "evil=goal_en")
        assert "both 'ask' and 'x' for every set; name one by SET=VALUE" in refuse(
            *again, "--column", "ask", "--column", "x"
        )
        assert "is given as VALUE, SET=VALUE or =VALUE, not '='" in refuse(*again, "--column", "=")
        assert "'n' has no column 'x'" in refuse(*again, "--column", "=x")  # of every set, as for a name with a = in it
        assert "--n is a number of prompts from 1 on, not '0'" in refuse(*again, "--n", "malicious=0")
        assert not (tmp_path / "other").exists()
        units = ["units", "classify", *ALIGNED, "--safety", tmp_path / "n.csv", "--utility", "organism:utility"]
        units += ["--n", "2", "--out", tmp_path / "units"]
        succeed(*units, "--column", "safety=ask", "--responses", "safety=say")
        want = PromptSet("", ("find a lamp", "make the tea"), ("yes", "no")).fingerprint
        assert load_run(tmp_path / "units")["inputs"]["safety"]["sha"] == want

    def test_how_many_of_all_sets_or_of_one(self, tmp_path: Path, out: Path) -> None:
        command = ["layers", "similarity", *ALIGNED, *SETS, "--draws", "5", "--out", out]
        succeed(*command, "--n", "4", "--n", "malicious=6")
        record = load_run(out)
        assert {name: record["inputs"][name]["n"] for name in ("normal", "malicious")} == {"normal": 4, "malicious": 6}
        assert "--n 4 --n malicious=6" in command_line(record)

    def test_duplicates_are_told_on_stderr(self, tmp_path: Path, out: Path) -> None:
        (tmp_path / "p.txt").write_text("where is the lamp\nmake the tea\nmake the tea\n")
        got = succeed(
            "layers", "similarity", *ALIGNED, "--normal", tmp_path / "p.txt", "--malicious", "organism:malicious",
            "--n", "3", "--draws", "5", "--json", "--out", out,
        )  # fmt: skip
        [line] = [line for line in got.stderr.splitlines() if line.startswith("warning: ")]
        assert "'p' has 1 duplicate prompt among 3, for example 'make the tea'" in line
        json.loads(got.stdout)

    def test_models_and_options(self, tmp_path: Path, out: Path) -> None:
        end = [*SETS, "--n", "4", "--out", out]
        assert "no model 'aligne'" in refuse("layers", "similarity", "--model", "organism:aligne", *end)
        assert "cannot load" in refuse("layers", "similarity", "--model", tmp_path / "missing", *end)
        got = refuse("layers", "similarity", *ALIGNED, *end, "--device", "warp:1")
        assert "there is no device 'warp:1' here; there is cpu" in got
        assert "is given as NAME=VALUE" in refuse("layers", "similarity", *ALIGNED, *end, "--compare", "=x")
        assert "has the name of --model" in refuse(
            "layers", "similarity", *ALIGNED, *end, "--compare", "aligned=organism:base"
        )
        local = ["layers", "localize", *ALIGNED, *BORDERLINE, "--n", "4", "--out", tmp_path / "l"]
        assert "--start FIRST,LAST, or --normal and --malicious" in refuse(*local)
        assert "not '3'" in refuse(*local, "--start", "3")
        assert "is outside the model" in refuse(*local, "--start", "3,99", "--alpha", "1.1")
        assert "a number or search, not 'big'" in refuse(*local, "--start", "3,4", "--alpha", "big")
        assert "no refusal detector 'x'" in refuse(
            "evaluate", *ALIGNED, "--malicious", "organism:malicious", "--detector", "x", "--out", tmp_path / "e"
        )
        assert "nothing to measure" in refuse("evaluate", *ALIGNED, "--out", tmp_path / "e")
        assert not list(tmp_path.iterdir())  # nothing of all this is left

    def test_freeze_mask(self, tmp_path: Path) -> None:
        good = sc.FreezeMask.layers((2, 3)).save(tmp_path / "good.safetensors")
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(good.read_bytes()[:-2])
        out = tmp_path / "o.safetensors"
        for command in (["show", bad], ["combine", good, bad, "--out", out], ["convert", bad, *ALIGNED, "--out", out]):
            assert "is truncated or not a safetensors file" in refuse("mask", *command)
        assert "there is no freeze mask" in refuse("mask", "show", tmp_path / "none")
        far = sc.FreezeMask.layers((2, 30)).save(tmp_path / "far.safetensors")
        assert "reaches layer 30, but the model's layers are 0 to 7" in refuse("mask", "show", far, *ALIGNED)
        assert not out.exists()

    def test_masks_look_at_a_model_in_the_precision_and_on_the_device_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from safecircuits.model import load as models

        real, loaded = models.load_model, []

        def load_model(*args: Any, **options: Any) -> Any:
            loaded.append(real(*args, **options))
            return loaded[-1]

        monkeypatch.setattr(models, "load_model", load_model)
        mask, out = sc.FreezeMask.layers((2, 3)).save(tmp_path / "m.safetensors"), tmp_path / "o.safetensors"
        for command in (["show", mask], ["combine", mask, mask, "--out", out], ["convert", mask, "--out", out]):
            assert "there is no device 'warp'" in refuse("mask", *command, *ALIGNED, "--device", "warp")
            succeed("mask", *command, *ALIGNED, "--device", "cpu", "--dtype", "bfloat16")
            assert next(loaded[-1].parameters()).dtype == torch.bfloat16

    def test_missing_options_are_named(self) -> None:
        got = run("layers", "grid", *ALIGNED)
        assert got.exit_code == 2
        assert "--over-rejection" in got.stderr or "--out" in got.stderr

    def test_a_defect_keeps_its_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> None:
            raise KeyError("oops")

        monkeypatch.setattr("safecircuits.cli.doctor.examine", broken)
        got = run("doctor")
        assert got.exit_code == 1
        assert isinstance(got.exception, KeyError)


class TestDoctor:
    def test_it_says_what_is_here(self) -> None:
        rows = {row["what"]: row for row in json.loads(succeed("doctor", "--json").stdout)}
        found, imported = rows["torch"]["found"], torch.__version__
        assert found.partition("+")[0] == imported.partition("+")[0]  # a package may not name the build, +cu132
        assert rows["demo"]["ok"] is True
        assert rows["--backend bridge"]["ok"] is True
        assert ("smollm2:layers-12-16" in rows["smollm2:NAME"]["found"]) == rows["smollm2:NAME"]["ok"]
        assert "can run here" in succeed("doctor").stdout

    def test_one_thread_is_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for threads, words in ((1, "1 thread"), (2, "2 threads")):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            rows = {row["what"]: row for row in json.loads(succeed("doctor", "--json").stdout)}
            assert rows["cores"]["found"].endswith(f"PyTorch uses {words}")

    def test_a_missing_extra_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(EXTRAS, "peft", (("no-such-package-of-ours",), "LoRA"))
        rows = {row["what"]: row for row in json.loads(succeed("doctor", "--json").stdout)}
        assert rows["peft"] == {
            "part": "extras", "what": "peft", "found": "LoRA: pip install 'safecircuits[peft]'", "ok": False
        }  # fmt: skip

    def test_it_knows_the_extras_of_the_package(self) -> None:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
        declared = project["optional-dependencies"]
        for extra, (packages, _) in EXTRAS.items():
            assert [re.split("[>=[]", p)[0] for p in declared[extra]] == list(packages)
        assert set(declared) - set(EXTRAS) == {"dev"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_with_options_that_exist(command: list[str]) -> None:
    text = " ".join(CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "400"}).stdout.split())
    assert "Example: safecircuits " + " ".join(command) in text
    example, _, options = text.partition("Example: ")[2].partition("╭")
    for word in example.split():
        if word.startswith("--"):
            assert f"{word} " in options, word
    assert "--config" in options


def test_help_says_what_a_report_is_called_unless_told() -> None:
    text = " ".join(CliRunner().invoke(app, ["report", "--help"], env={"COLUMNS": "400"}).stdout.split())
    assert "RUN/report.html, or comparison.html of several runs, unless given" in text


def test_shared_options() -> None:
    """Every command that runs a model has them; the demo says itself which models it runs."""
    for command in COMMANDS:
        if command[0] not in ("doctor", "mask", "organism", "report"):
            text = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "400"}).stdout
            own = () if command == ["demo"] else ("--model",)
            for option in (*own, "--out", "--seed", "--device", "--dtype", "--backend", "--json", "--force"):
                assert option in text, (command, option)


def test_a_real_process_keeps_stdout_for_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "safecircuits", "layers", "similarity", *ALIGNED, *SETS, "--n", "4", "--json"]
    out = str(tmp_path / "run")
    ending = ["--draws", "5", "--backend", backends()[-1], "--out", out]
    got = subprocess.run([*command, *ending], capture_output=True, text=True, check=True)
    assert len(json.loads(got.stdout)["table"]) == 8
    assert all(line.startswith("wrote ") for line in got.stderr.splitlines()), got.stderr
    got = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    assert got.returncode == 2
    assert got.stdout == ""
    assert got.stderr.startswith("error: ")
    assert got.stderr.count("\n") == 1


def test_help_folds_what_every_run_has() -> None:
    short = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "400"}).stdout
    full = CliRunner().invoke(app, ["evaluate", "--help-all"], env={"COLUMNS": "400"}).stdout
    panels = ["Sets of prompts", "A judge", "Answers and template", "Model and output"]
    assert [line.split(" ")[1:-1] and line.strip("╭─╮ ") for line in short.splitlines() if line.startswith("╭")] == [
        "Options",
        *panels,
    ]
    assert "More, as in every run (--help-all explains them): --seed, --device" in short
    assert all(f"╭─ {panel} " in full for panel in ("Every run", "Reading prompts", *panels))
    assert "Decides every random choice" in full
    assert "Decides every random choice" not in short
    again = CliRunner().invoke(app, ["evaluate", "--help-all"], env={"COLUMNS": "400"}).stdout
    assert again == full
