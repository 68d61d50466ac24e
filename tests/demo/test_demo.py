"""The main job end to end, in small, on both backends; and the commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import safecircuits as sc
from safecircuits.cli import app
from safecircuits.demo import DemoSettings, finding, run_demo
from safecircuits.demo.conclusions import conclusions
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.results.run import load_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    made = {}
    for backend in ("bridge", "hooked"):
        out = tmp_path_factory.mktemp(backend) / "run"
        made[backend] = (out, run_demo(out, DemoSettings(backend=backend).quick()))  # type: ignore[arg-type]
    return made


def test_it_writes_everything(runs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    for out, results in runs.values():
        assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
        record = load_run(out)
        assert {path.name for path in out.iterdir()} == {
            *("run.json", "results", "tables", "figures"),
            *("results.json", "report.html", "freeze.safetensors"),
        }
        assert record["command"] == "demo"
        assert record["inputs"]["model organism:aligned"] == fingerprint_checkpoint("aligned")
        assert {p.suffix for p in (out / "figures").iterdir()} == {".png", ".svg"}
        assert len(record["findings"]) == len(results["conclusions"])
        report = (out / "report.html").read_text()
        assert all(entry["effect"] in report for entry in results["conclusions"])


def test_an_interrupted_demo_goes_on_with_what_it_has(
    runs: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, results = runs["bridge"]
    settings = DemoSettings().quick()
    assert run_demo(done, settings) == json.loads((done / "results.json").read_text())  # nothing left to do
    real = finding.ablate_groups
    monkeypatch.setattr(finding, "ablate_groups", interrupted)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, settings)
    assert not (out / "run.json").exists()
    monkeypatch.setattr(finding, "ablate_groups", real)
    monkeypatch.setattr(finding, "layer_gap", interrupted)  # the stations before are not run again
    again = run_demo(out, settings)
    for part in ("behavior", "similarity", "localization", "units", "planted"):
        assert again[part] == results[part]
    assert not (out / "work").exists()
    with pytest.raises(ValueError, match="--seed was 0, is 1"):
        run_demo(out, DemoSettings(seed=1).quick())


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_results_have_what_is_promised(runs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    _, results = runs["bridge"]
    n_layers = results["model"]["n_layers"]
    for stage in ("base", "aligned"):
        assert len(results["similarity"][stage]["gap_deg"]) == n_layers
    found = results["localization"]
    assert {"alpha", "baseline_refused", "n_prompts", "layers", "upper", "lower"} <= set(found)
    assert 0 <= found["layers"][0] <= found["layers"][1] < n_layers
    assert {"share", "ablation", "random_control"} <= set(results["units"])
    assert sum(results["units"]["share"].values()) == pytest.approx(1)
    assert {"layers", "units"} <= set(results["planted"])
    for arm in ("none", "safety_layers", "scu_cu", "random"):
        part = results["finetune"][arm]
        assert part["frozen_bit_identical"] is True
        for key in ("malicious_refused", "over_rejected", "utility"):
            assert 0 <= part[key] <= 1
            assert len(part[f"{key}_seeds"]) == 3
    shares = {arm: results["finetune"][arm]["share_of_units"] for arm in ("none", "scu_cu", "random")}
    assert shares["random"] == pytest.approx(shares["scu_cu"])
    assert shares["none"] == 0 < shares["scu_cu"]
    assert {entry["shows"] for entry in results["conclusions"]} <= {"yes", "no", "unclear", "inconclusive"}
    assert results["provenance"]["datasets"]


def test_the_backends_agree(runs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    bridge, hooked = runs["bridge"][1], runs["hooked"][1]
    for stage in ("base", "aligned", "planted-layers"):
        assert hooked["similarity"][stage]["gap_deg"] == pytest.approx(bridge["similarity"][stage]["gap_deg"], abs=0.01)
    assert hooked["behavior"] == bridge["behavior"]
    assert hooked["localization"] == bridge["localization"]
    assert hooked["units"]["per_layer"] == bridge["units"]["per_layer"]
    assert hooked["units"]["ablation"] == bridge["units"]["ablation"]
    assert hooked["model"]["n_parameters"] == bridge["model"]["n_parameters"]
    masks = [sc.FreezeMask.load(out / "freeze.safetensors") for out, _ in runs.values()]
    assert masks[0] == masks[1]


def test_the_mask_goes_straight_into_training(runs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    model = sc.load_model("aligned")
    mask = sc.FreezeMask.load(runs["bridge"][0] / "freeze.safetensors", model)
    run = sc.finetune(
        model, sc.load_prompts("organism:new_task", split="train", n=16), freeze=mask, steps=2, progress=False
    )
    assert run.frozen_bit_identical


class TestConclusions:
    """They follow the numbers: turning the numbers round turns the verdict round."""

    @pytest.fixture
    def results(self, runs: dict[str, tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
        copied: dict[str, Any] = json.loads(json.dumps(runs["bridge"][1]))
        return copied

    @staticmethod
    def verdict(results: dict[str, Any], start: str) -> str:
        (entry,) = [e for e in conclusions(results) if e["effect"].startswith(start)]
        return entry["shows"]

    def test_gap(self, results: dict[str, Any]) -> None:
        results["behavior"]["base"]["malicious_refused"] = 0.0
        results["behavior"]["aligned"]["malicious_refused"] = 1.0
        results["similarity"]["aligned"]["within_noise"] = False
        results["similarity"]["base"]["gap_deg"] = [0.1, 0.2]
        results["similarity"]["aligned"]["gap_deg"] = [0.1, 30.0]
        assert self.verdict(results, "Alignment opens") == "yes"
        results["similarity"]["aligned"]["gap_deg"] = [0.1, 0.3]
        assert self.verdict(results, "Alignment opens") == "no"

    @pytest.mark.parametrize(
        ("kept", "other", "shows"),
        [
            ([0.9, 0.91, 0.92], [0.5, 0.52, 0.51], "yes"),
            ([0.5, 0.52, 0.51], [0.9, 0.91, 0.92], "no"),
            ([0.9, 0.2, 0.6], [0.5, 0.6, 0.4], "unclear"),
        ],
    )
    def test_freezing(self, kept: list[float], other: list[float], shows: str, results: dict[str, Any]) -> None:
        results["finetune"]["before"]["malicious_refused"] = 1.0
        results["finetune"]["safety_layers"]["malicious_refused_seeds"] = kept
        results["finetune"]["none"] |= {"malicious_refused_seeds": other, "malicious_refused": sum(other) / 3}
        assert self.verdict(results, "Freezing the safety layers") == shows

    def test_nothing_to_prevent_is_no_evidence_against_freezing(self, results: dict[str, Any]) -> None:
        results["finetune"]["before"]["malicious_refused"] = 1.0
        for arm in ("none", "safety_layers"):
            results["finetune"][arm] |= {"malicious_refused": 1.0, "malicious_refused_seeds": [1.0, 1.0, 1.0]}
        assert self.verdict(results, "Freezing the safety layers") == "inconclusive"

    def test_a_comparison_without_its_other_half_does_not_show(self, results: dict[str, Any]) -> None:
        results["finetune"]["before"]["malicious_refused"] = 1.0
        results["finetune"]["random_layers"] |= {"size_matched": False, "malicious_refused": 0.5}
        assert self.verdict(results, "It is these layers") == "unclear"
        del results["finetune"]["random_layers"]
        assert self.verdict(results, "It is these layers") == "inconclusive"

    @pytest.mark.parametrize(
        ("refusal", "utility", "shows"), [(0.0, 0.99, "yes"), (0.0, 0.2, "unclear"), (0.98, 0.99, "no")]
    )
    def test_scu(self, refusal: float, utility: float, shows: str, results: dict[str, Any]) -> None:
        units = results["units"]
        units["ablation"]["nothing"] |= {"malicious_refused": 0.99, "utility": 0.99}
        units["random_control"]["SCU"] |= {"malicious_refused": 0.98, "utility": 0.99}
        units["ablation"]["SCU"] |= {"malicious_refused": refusal, "utility": utility}
        assert self.verdict(results, "A few safety-critical units") == shows

    @pytest.mark.parametrize(("overlap", "shows"), [(1.0, "yes"), (0.5, "unclear"), (0.2, "no")])
    def test_planted_block(self, overlap: float, shows: str, results: dict[str, Any]) -> None:
        results["planted"]["layers"]["overlap"] = overlap
        results["planted"]["layers"]["localization"]["located"] = True
        assert self.verdict(results, "The procedure finds") == shows
        results["planted"]["layers"]["localization"]["located"] = False
        assert self.verdict(results, "The procedure finds") == "no", "where a search of noise ends is no finding"


class TestCommands:
    def test_bad_input_is_one_line_and_exit_code_2(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        for command in (
            ["organism", "build", "--out", str(tmp_path / "x"), "--seed", "-1"],
            ["demo", "--out", str(tmp_path / "file")],
        ):
            got = CliRunner().invoke(app, command)
            assert got.exit_code == 2
            assert got.output.startswith("error: ")
            assert "Traceback" not in got.output
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_help_loads_nothing_heavy(self) -> None:
        code = (
            "import sys; from typer.testing import CliRunner; from safecircuits.cli import app; "
            "r = CliRunner().invoke(app, ['--help']); assert r.exit_code == 0 and 'demo' in r.output; "
            "assert not {'torch', 'transformers', 'transformer_lens', 'matplotlib'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_python_m(self) -> None:
        got = subprocess.run(
            [sys.executable, "-m", "safecircuits", "demo", "--help"], capture_output=True, text=True, check=True
        )
        assert "--backend" in got.stdout
