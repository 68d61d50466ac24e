"""The main job end to end, in small, on both backends; and the commands as a user types them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import safecircuits as sc
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.measured import Behavior
from safecircuits.cli import app
from safecircuits.demo import DemoSettings, DemoStudy, layers, run_demo, units
from safecircuits.layers.localization import Sweep
from safecircuits.layers.sweep_point import SweepPoint
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.load_record import load_run, run_provenance

pytestmark = pytest.mark.slow

TEXTS = tuple(map(str, range(100)))
ANSWERS = Completions(PromptSet("own", TEXTS), TEXTS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, DemoStudy]]:
    made = {}
    for backend in ("bridge", "hooked"):
        out = tmp_path_factory.mktemp(backend) / "run"
        made[backend] = (out, run_demo(out, DemoSettings(backend=backend).quick()))
    return made


def test_it_writes_everything(runs: dict[str, tuple[Path, DemoStudy]]) -> None:
    for out, study in runs.values():
        record = load_run(out)
        assert {path.name for path in out.iterdir()} == {
            *("run.json", "results", "tables", "figures", "completions"),
            *("report.html", "freeze.safetensors"),
        }
        assert record["command"] == "demo"
        assert record["inputs"]["model organism:aligned"] == fingerprint_checkpoint("aligned")
        assert {p.suffix for p in (out / "figures").iterdir()} == {".pdf", ".png", ".svg"}
        said = study.conclusions()
        assert len(record["findings"]) - 1 == len(said) == 12  # the first counts them
        report = (out / "report.html").read_text()
        assert all(entry["effect"] in report for entry in said)
        for name, found in study.found.items():
            assert type(found).load(out / "results" / name).equals(found)


def test_the_report_command_makes_the_page_again(runs: dict[str, tuple[Path, DemoStudy]], tmp_path: Path) -> None:
    out, study = runs["bridge"]
    got = CliRunner().invoke(app, ["report", str(out), "--out", str(tmp_path / "again.html")])
    assert got.exit_code == 0
    again = (tmp_path / "again.html").read_text(encoding="utf-8")
    assert again == study.page(run_provenance(load_run(out)))[0]


def test_an_interrupted_demo_goes_on_with_what_it_has(
    runs: dict[str, tuple[Path, DemoStudy]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, study = runs["bridge"]
    settings = DemoSettings().quick()
    assert run_demo(done, settings).conclusions() == study.conclusions()  # nothing left to do
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(units, "ablate_groups", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, settings)
    assert not (out / "run.json").exists()
    monkeypatch.setattr(layers, "layer_gap", interrupted)  # the parts before are not run again
    again = run_demo(out, settings)
    for name in study.found:
        if name != "finetuning":  # whose steps take another time
            assert again.found[name].equals(study.found[name]), name
    assert not (out / "work").exists()
    with pytest.raises(ValueError, match="--seed was 0, is 1"):
        run_demo(out, DemoSettings(seed=1).quick())


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_results_have_what_is_promised(runs: dict[str, tuple[Path, DemoStudy]]) -> None:
    _, study = runs["bridge"]
    assert set(study.gaps) == {"base", "aligned", "planted-layers"}
    assert len(study.behavior) == len(study.normal) == 5
    assert sum(study.groups.shares().values()) == pytest.approx(1)
    assert [row.name for row in study.ablation.rows] == ["SCU", "UCU", "RU"]
    assert study.planted_units.rows[-1].name == "planted"
    tuned = study.finetuning
    assert {"none", "safety_layers", "scu_cu", "random"} <= set(tuned.arms)
    assert all(run.frozen_bit_identical is not False for run in tuned.runs)
    shares = {arm: tuned.of(tuned.scenarios[0], arm)[0].share_frozen for arm in ("none", "scu_cu", "random")}
    assert shares["random"] == pytest.approx(shares["scu_cu"], abs=0.03)  # key/value heads are shared
    assert shares["none"] == 0 < shares["scu_cu"]
    assert {entry["shows"] for entry in study.conclusions()} <= {"yes", "no", "unclear", "inconclusive"}


def flat(record: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """A record's figures by their path."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        found |= flat(value, f"{at}{name}.") if isinstance(value, Mapping) else {f"{at}{name}": value}
    return found


def test_the_backends_agree(runs: dict[str, tuple[Path, DemoStudy]]) -> None:
    bridge, hooked = runs["bridge"][1], runs["hooked"][1]
    for stage, gap in bridge.gaps.items():
        assert hooked.gaps[stage].gap_deg.tolist() == pytest.approx(gap.gap_deg.tolist(), abs=0.01)
        assert hooked.behavior[stage].rates == bridge.behavior[stage].rates
    assert hooked.located.record() == bridge.located.record()
    assert hooked.groups.record() == bridge.groups.record()
    found, known = flat(hooked.ablation.record()), flat(bridge.ablation.record())
    kl = {name for name in known if "_kl" in name}
    assert {name: found[name] for name in known if name not in kl} == {n: v for n, v in known.items() if n not in kl}
    assert [found[name] for name in kl] == pytest.approx([known[name] for name in kl], rel=1e-2, abs=1e-5)
    assert hooked.n_parameters == bridge.n_parameters
    masks = [sc.FreezeMask.load(out / "freeze.safetensors") for out, _ in runs.values()]
    assert masks[0] == masks[1]


def test_the_mask_goes_straight_into_training(runs: dict[str, tuple[Path, DemoStudy]]) -> None:
    model = sc.load_model("aligned")
    mask = sc.FreezeMask.load(runs["bridge"][0] / "freeze.safetensors", model)
    run = sc.finetune(
        model, sc.load_prompts("organism:new_task", split="train", n=16), freeze=mask, steps=2, progress=False
    )
    assert run.frozen_bit_identical


class TestConclusions:
    """They follow the numbers: turning the numbers round turns the verdict round."""

    @pytest.fixture
    def study(self, runs: dict[str, tuple[Path, DemoStudy]]) -> DemoStudy:
        return runs["bridge"][1]

    @staticmethod
    def verdict(study: DemoStudy, start: str) -> str:
        (entry,) = [e for e in study.conclusions() if e["effect"].startswith(start)]
        return entry["shows"]

    def test_gap(self, study: DemoStudy) -> None:
        n = 16
        refusing, answering = (Behavior(torch.arange(n) < k, None, None) for k in (n, 0))
        # Apart from chance: no set of prompts that is dealt out at random has as large a gap.
        flat, steep = (
            replace(study.gaps["aligned"], gap_deg=torch.tensor([0.1, most]), p=0.001, resampled=None)
            for most in (0.2, 30.0)
        )
        found: dict[str, Any] = {"behavior_base": answering, "behavior_aligned": refusing, "gap_base": flat}
        assert self.verdict(study.having(**found, gap_aligned=steep), "Alignment opens") == "yes"
        assert self.verdict(study.having(**found, gap_aligned=flat), "Alignment opens") == "no"
        found["behavior_base"] = refusing
        assert self.verdict(study.having(**found, gap_aligned=steep), "Alignment opens") == "inconclusive"

    @staticmethod
    def tuned(study: DemoStudy, **refused: list[float]) -> DemoStudy:
        """With the refusal of these arms after fine-tuning, one a seed, and all of it before."""
        runs = []
        for run in study.finetuning.runs:
            rates = refused.get(run.arm, [run.figures["malicious_refused"]] * 3)
            before, after = ({"malicious_refused": rate} for rate in (1.0, rates[run.seed]))
            runs.append(replace(run, before={**run.before, **before}, figures={**run.figures, **after}))
        return study.having(finetuning=replace(study.finetuning, runs=tuple(runs)))

    @pytest.mark.parametrize(
        ("kept", "other", "shows"),
        [
            ([0.9, 0.91, 0.92], [0.5, 0.52, 0.51], "yes"),
            ([0.5, 0.52, 0.51], [0.9, 0.91, 0.92], "no"),
            ([0.9, 0.2, 0.6], [0.5, 0.6, 0.4], "unclear"),
            ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], "inconclusive"),  # nothing to prevent is no evidence against freezing
        ],
    )
    def test_freezing(self, kept: list[float], other: list[float], shows: str, study: DemoStudy) -> None:
        changed = self.tuned(study, safety_layers=kept, none=other)
        assert self.verdict(changed, "Freezing the safety layers") == shows

    def test_a_comparison_without_its_other_half_does_not_show(self, study: DemoStudy) -> None:
        found = study.located
        tuned = study.finetuning
        ours = [run for run in tuned.runs if run.arm != "random_layers"]
        alone = study.having(finetuning=replace(tuned, runs=tuple(ours)))
        assert self.verdict(alone, "It is these layers") == "inconclusive"
        others = [replace(run, arm="random_layers") for run in ours if run.arm == "random"]
        both = replace(tuned, runs=(*ours, *others), frozen={**tuned.frozen, "random_layers": "others"})
        rates = {"safety_layers": [0.9, 0.91, 0.92], "random_layers": [0.5, 0.52, 0.51]}
        changed = self.tuned(study.having(finetuning=both), **rates)
        small, large = (replace(found, layers=LayerRange(0, last)) for last in (2, 5))
        assert self.verdict(changed.having(localization=small), "It is these layers") == "yes"
        assert self.verdict(changed.having(localization=large), "It is these layers") == "unclear"

    @pytest.mark.parametrize(("block", "shows"), [((3, 5), "yes"), ((2, 6), "unclear"), ((0, 1), "no")])
    def test_planted_block(self, block: tuple[int, int], shows: str, study: DemoStudy) -> None:
        found = study.planted_located
        real, lost = (replace(found, baseline=point(0), **sweeps(count)) for count in (80, 0))
        assert (real.located, lost.located) == (True, False)
        real, lost = (replace(one, layers=LayerRange(*block)) for one in (real, lost))
        assert self.verdict(study.having(planted_localization=real), "The procedure finds") == shows
        end = study.having(planted_localization=lost)
        assert self.verdict(end, "The procedure finds") == "no", "where a search of noise ends is no finding"


def point(count: int, layers: LayerRange | None = None) -> SweepPoint:
    return SweepPoint(layers, 1.2, torch.arange(100) < count, 0.0, ANSWERS)


def sweeps(count: int) -> dict[str, Any]:
    """Both bounds of a search in which the best block has as many refusals."""
    points = tuple(point(count if last == 5 else 0, LayerRange(3, last)) for last in (4, 5, 6))
    return {bound: Sweep(bound, points, "up") for bound in ("upper", "lower")} | {"alpha_trials": ()}


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
