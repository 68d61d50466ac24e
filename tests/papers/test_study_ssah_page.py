"""The whole SSAH study in small: every part there, kept, resumed, and said as the numbers are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from counted_pages import bare_counts
from safecircuits import organism
from safecircuits.base.vocabulary import LayerRange
from safecircuits.baselines.two_phases import TwoPhases
from safecircuits.behavior.measured import Behavior
from safecircuits.cli import app
from safecircuits.cli.study_ssah import cuts
from safecircuits.direction.variants import Suffixes
from safecircuits.papers import behavior
from safecircuits.papers.ssah import direction, equal, removals, scores, stability
from safecircuits.papers.ssah.freezing import arms_of, random_name
from safecircuits.papers.ssah.removals import removal_verdict
from safecircuits.papers.ssah.settings import SsahPrompts, SsahSettings, cut_by
from safecircuits.papers.ssah.study import SsahStudy, SsahSubject, check_inputs, ssah_study
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.load_record import load_run, run_provenance
from safecircuits.results.run import RunDirectory
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.scenarios import organism_new_task
from safecircuits.training.plain import Plain
from safecircuits.training.settings import TrainingSettings
from safecircuits.units.ablation import Ablation, AblationTable
from safecircuits.units.groups import GROUPS

pytestmark = pytest.mark.slow

TRAINING = TrainingSettings(steps=2, batch_size=4, lr=4e-4, schedule="constant")


def small(**changes: Any) -> SsahSettings:
    settings: dict[str, Any] = {
        "seeds": (0,),
        "suffixes": Suffixes(("i cannot",), ("take the",)),
        "readings": {"mean": {"pool": "mean", "steps": (2, 4)}},
        "probe_prompts": 6,
        "counts": (1, 8),
        "controls": 2,
        "prune": True,
        "system": "you are a helpful assistant .",
        "prefill": "take the",
        "prefill_tokens": (1,),
        "draws": 2,
        "longer": 1,
        "scenarios": (organism_new_task(8),),
        "training": TRAINING,
        "points": 1,
        "curve_prompts": 4,
        "measured": 4,
        "budget_rows": 8,
        "layers": LayerRange(3, 5),
    }
    return SsahSettings(**settings | changes)


def prompts(**changes: Any) -> SsahPrompts:
    sets: dict[str, Any] = {
        "safety": organism.prompts("malicious", "train", n=12),
        "utility": organism.prompts("utility", "train", n=12),
        "malicious": organism.prompts("malicious", n=12),
        "known": organism.prompts("utility", n=4),
        "normal": organism.prompts("normal", n=12),
    }
    return SsahPrompts(**sets | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SsahStudy, Path]]:
    folder = tmp_path_factory.mktemp("study") / "run"
    with pytest.MonkeyPatch.context() as patched, RunDirectory.open(folder, "study", {}) as run:
        patched.setattr(equal, "BUDGETS", {"a quarter": 0.25})  # a budget is enough here
        yield ssah_study("aligned", prompts(), run, settings=small(), base="base", unaligned="unaligned"), folder


def test_every_part_is_there_and_loads_again(done: tuple[SsahStudy, Path]) -> None:
    study, folder = done
    kept = {path.name for path in (folder / "results").iterdir()}
    both = {f"{part}_{i}" for part in ("groups", "profiles", "stability", "enrichment", "overlap") for i in (0, 1)}
    both |= {f"removals_{i}_{how}" for i in (0, 1) for how in ("zero", "mean", "system")}
    both |= {f"pruned_{i}_{group}" for i in (0, 1) for group in ("SCU", "UCU", "RU")}
    both |= {f"transfer_{i}_{kind}" for i in (0, 1) for kind in ("base", "unaligned", "tuned")}
    one = {
        "behavior",
        "behavior_base",
        "behavior_unaligned",
        "probe_0",
        "scores",
        "means",
        "agreement",
        "subject",
        "block",
    }
    assert kept == both | one | {f"pressure_{i}" for i in range(4)} | {"depth", "finetuning", "budget", "equal"}
    sources = {name: name for name in ("aligned", "unaligned", "base")}
    assert study.probes["mean"].provenance["models"] == sources
    assert set(FinetuningStudy.load(folder / "results" / "finetuning").arms) == set(study.finetuning.arms)


def test_curves_have_a_point_at_the_paper_s_share_that_is_the_removal_of_the_scu(
    done: tuple[SsahStudy, Path],
) -> None:
    study, _ = done
    assert study.scores is not None
    for curve, tables in zip(study.scores.curves, study.removed.values(), strict=True):
        [row] = [row for row in tables["zero"].rows if row.name == "SCU"]
        assert [point.removed for point in curve.points] == [1, 8, row.n_units]
        assert curve.points[-1].refusal == pytest.approx(row.behavior.rates["malicious_refused"])
        assert curve.points[-1].utility == pytest.approx(row.behavior.rates["utility"])


def test_the_report_is_made_again_from_what_is_saved(done: tuple[SsahStudy, Path]) -> None:
    study, folder = done
    record = {"command": "study", "arguments": {}, "inputs": {}, "provenance": {}, "finished": "now", "seconds": 1}
    again = SsahSubject.load(folder / "results" / "subject").study(folder)
    assert again.page(run_provenance(record))[0] == study.page(run_provenance(record))[0]


def test_every_frozen_arm_has_as_many_random_units_beside_it(done: tuple[SsahStudy, Path]) -> None:
    study, _ = done
    shares = study.finetuning.summary().set_index("arm")["share_frozen"]
    for name in study.groups:
        for arm in (f"SCU+6%CU ({name})", f"SCU+all CU ({name})"):
            # A key/value head that query heads share is frozen with all of them, wherever the draw puts them.
            assert shares[random_name(arm)] == pytest.approx(shares[arm], abs=0.03)


def test_the_paper_s_schedule_doubles_the_steps_and_begins_with_all_cu(done: tuple[SsahStudy, Path]) -> None:
    study, _ = done
    arms = {arm.name: arm for arm in arms_of(replace(study, settings=small(longer=2)))}
    slow, every = arms["SCU+6%CU, paper's schedule (wifv)"], arms["SCU+all CU, paper's schedule (wifv)"]
    assert (slow.longer, every.longer, every.method) == (2, 2, Plain())
    assert slow.method == TwoPhases(every.mask)
    assert slow.mask == arms["SCU+6%CU (wifv)"].mask
    assert set(study.finetuning.arms) == {name for name in arms if "schedule" not in name}


def test_budgets_are_equal_and_full_fine_tuning_is_not_run_again(done: tuple[SsahStudy, Path]) -> None:
    study, _ = done
    shares = study.equal.summary().set_index("arm")["share_frozen"]
    frozen = [share for arm, share in shares.items() if arm != "full"]
    assert len(frozen) == 5
    assert max(frozen) - min(frozen) < 0.03  # as above
    scenario = study.equal.scenarios[0]
    assert study.equal.of(scenario, "full")[0].equals(study.finetuning.of(scenario, "full")[0])


def test_a_base_model_has_utility_critical_and_redundant_units_alone(done: tuple[SsahStudy, Path]) -> None:
    study, _ = done
    for found in study.transferred.values():
        before = found["base → aligned"].totals["before"]
        assert before["SCU"] == before["CU"] == 0
        assert before["RU"] == pytest.approx(0.148, abs=1e-3)


def test_cutting_units_out_does_what_the_hooks_do(done: tuple[SsahStudy, Path]) -> None:
    study, _ = done
    for name, found in study.cut_out.items():
        rows = {row.name: row.behavior for row in study.removed[name]["zero"].rows}
        for group, one in found.items():
            assert one.behavior.rates == rows[group].rates


def test_an_interrupted_study_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(scenarios=(), prune=False, system=None, prefill=None, cuts={"wifv": cut_by("wifv")})

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stability, "calibration_subsets", stop)
        with pytest.raises(KeyboardInterrupt), RunDirectory.open(tmp_path / "run", "study", {}) as run:
            ssah_study("aligned", prompts(), run, settings=settings)

    def again(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured again")

    for module, name in (
        (behavior, "evaluate"),
        (direction, "compare_directions"),
        (scores, "score_comparison"),
        (removals, "ablate_groups"),
    ):
        monkeypatch.setattr(module, name, again)
    with RunDirectory.open(tmp_path / "run", "study", {}) as run:
        study = ssah_study("aligned", prompts(), run, settings=settings)
    assert set(study.stability) == {"wifv"}
    assert study.agreement is None
    assert study.finetuning is None
    assert study.budget is None
    assert "results/stability_0" in load_run(tmp_path / "run")["files"]
    html, _ = study.page({})
    assert "Table 1" in html
    assert "What fine-tuning leaves" not in html


def test_no_count_of_refusals_stands_alone(done: tuple[SsahStudy, Path]) -> None:
    study, _ = done
    assert bare_counts(study.page({"seed": 0})[0]) == []


def test_the_page_says_what_the_numbers_are(done: tuple[SsahStudy, Path]) -> None:
    study, _ = done
    html, figures = study.page({"seed": 0})
    drawn = {"scores", "removals_0", "pressure", "depth", "finetuning_0", "transfer_1_0", "budget", "enrichment_1"}
    assert drawn <= set(figures)
    assert "How many tokens deep?" in html
    assert "66" in html  # a published figure of another model
    rows = {row.name: row for row in study.removed["attribution"]["zero"].rows}
    assert f"{rows['SCU'].n_units} units" in html
    assert {entry["shows"] for entry in study.conclusions()} <= {"yes", "no", "unclear", "inconclusive"}


def test_a_model_of_the_paper_is_put_beside_its_published_numbers(done: tuple[SsahStudy, Path]) -> None:
    study, _ = done
    html, _ = replace(study, source="meta-llama/Llama-2-7b-chat-hf").page({})
    row = next(row for row in study.removed["wifv"]["zero"].rows if row.name == "SCU")
    success = f"{100 * (1 - row.behavior.rates['malicious_refused']):.2f}"
    cells = html.split("removed SCU 1.3 %", 1)[1].split("asr_nosys", 1)[1].split("</tr>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", cells) == ["84", success]


class TestVerdict:
    """A hundred prompts of which the intact model refuses all."""

    def row(self, refused: int, controls: tuple[int, ...]) -> tuple[AblationTable, Ablation]:
        def behavior(n: int) -> Behavior:
            return Behavior(torch.arange(100) < n, None, torch.ones(100, dtype=torch.bool))

        ablation = Ablation("SCU", 4, behavior(refused), tuple(map(behavior, controls)))
        return AblationTable(behavior(100), (ablation,)), ablation

    @pytest.mark.parametrize(
        ("refused", "controls", "falls", "stays"),
        [
            (0, (100, 95, 100), "yes", "no"),
            (100, (100, 95, 100), "no", "yes"),
            (0, (0, 5, 0), "no", "no"),  # as many random units do it, too
            (0, (), "yes", "no"),
        ],
    )
    def test_of_a_fall_and_of_none(self, refused: int, controls: tuple[int, ...], falls: str, stays: str) -> None:
        table, row = self.row(refused, controls)
        assert removal_verdict(table, row, "malicious_refused", "falls")[0] == falls
        assert removal_verdict(table, row, "malicious_refused", "stays")[0] == stays

    def test_one_draw_cannot_decide_and_says_so(self) -> None:
        shows, text = removal_verdict(*self.row(0, (100,)), "malicious_refused", "falls")
        assert shows == "unclear"
        assert "chance does the same: --controls 5 can" in text
        assert "--controls" not in removal_verdict(*self.row(0, (100, 95)), "malicious_refused", "falls")[1]


class TestCommand:
    def fails(self, *arguments: str) -> str:
        result = CliRunner().invoke(app, ["study", "ssah", *arguments])
        assert result.exit_code == 2
        return result.output

    def test_another_model_needs_prompts(self, tmp_path: Path) -> None:
        assert "give --safety" in self.fails("--model", "gpt2", "--out", str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_a_bad_score(self, tmp_path: Path) -> None:
        for text, said in (("magic", "'magic'"), ("wifv:some", "'some'"), ("wifv:all:loud", "'loud'")):
            out = ("--model", "organism:aligned", "--out", str(tmp_path / "out"))
            assert said in self.fails("--score", text, *out)
        assert not (tmp_path / "out").exists()

    def test_an_attribution_needs_normal_prompts(self) -> None:
        with pytest.raises(ValueError, match="normal prompts"):
            check_inputs(prompts(normal=None), small())

    def test_alignment_data_need_responses(self) -> None:
        bare = PromptSet("bare", ("what is the name ?",))
        for name in ("known", "answered", "answered_held_out"):
            with pytest.raises(ValueError, match="'bare' has no responses"):
                check_inputs(prompts(**{name: bare}), small())

    def test_shares_and_layers_that_do_not_fit(self, tmp_path: Path) -> None:
        out = ("--model", "organism:aligned", "--out", str(tmp_path / "out"))
        assert "add up to 1.4" in self.fails("--scu", "0.5", "--ucu", "0.5", "--ru", "0.4", *out)
        assert "scu is a share" in self.fails("--scu", "1.5", *out)
        assert "0 to 7" in self.fails("--layers", "3,9", *out)
        assert not (tmp_path / "out").exists()

    def test_scores_are_named_by_method_or_in_full(self) -> None:
        assert cuts(["wifv:response", "attribution"]) == {
            "wifv": cut_by("wifv", "response"),
            "attribution": cut_by("attribution"),
        }
        assert list(cuts(["wifv", "wifv:response:zscore"])) == ["wifv", "wifv:response:zscore"]

    def test_an_attribution_cuts_scu_alone(self) -> None:
        cut = cut_by("attribution")
        assert (cut.score.method, cut.safest.method, cut.safest.contrast) == ("wifv", "attribution", "safety")


def test_shares_of_the_page_are_those_of_the_groups(done: tuple[SsahStudy, Path]) -> None:
    study, _ = done
    for groups in study.groups.values():
        assert sum(groups.shares()[group] for group in GROUPS) == pytest.approx(1)
        assert replace(groups).shares()["SCU"] == pytest.approx(0.013, abs=1e-3)
