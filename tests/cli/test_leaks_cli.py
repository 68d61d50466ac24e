"""What one command finds on some prompts is not judged by another on the same without a word."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from commands import refuse, succeed
from safecircuits.base.notices import Notice
from safecircuits.cli.study_inputs import study_prompts
from safecircuits.data.sources import load_prompts
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.papers.safety_layers.settings import StudyPrompts
from safecircuits.papers.safety_layers.study import shared_prompts
from safecircuits.papers.ssah.settings import SsahPrompts
from safecircuits.papers.ssah.study import shared_prompts as shared_of_ssah
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.load_record import load_run

MODEL = ["--model", "organism:aligned", "--n", 6]


def findings(out: Path) -> str:
    return "\n".join(load_run(out)["findings"])


def test_units_that_are_removed_are_told_from_where_they_were_found(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    succeed("units", "classify", *MODEL, "--safety", "organism:malicious", "--utility", "organism:utility",
            "--out", groups)  # fmt: skip
    kept = json.loads((groups / "found_on.json").read_text(encoding="utf-8"))
    assert kept["safety"] == list(load_prompts("organism:malicious", n=6).prompts)
    file = tmp_path / "mine.csv"
    changed = [f"please , {prompt.upper()} !" for prompt in kept["safety"][:1]]
    pd.DataFrame({"prompt": [*changed, "an altogether different question about nothing"]}).to_csv(file, index=False)
    ablate = ["units", "ablate", "--model", "organism:aligned", "--groups", groups, "--group", "SCU", "--controls", 1]
    succeed(*ablate, "--malicious", file, "--max-new-tokens", 4, "--out", tmp_path / "near")
    assert "1 of the 2 prompts of 'mine' are in 'safety', too (0 the same, 1 nearly)" in findings(tmp_path / "near")
    page = (tmp_path / "near" / "report.html").read_text(encoding="utf-8")
    assert "caveat: found and judged on the same: 1 of the 2 prompts" in page
    assert changed[0][:30] not in findings(tmp_path / "near")  # a page is passed on, and these may be harmful
    other = tmp_path / "other.csv"
    pd.DataFrame({"prompt": ["an altogether different question about nothing", "and one more of them"]}).to_csv(other)
    succeed(*ablate, "--malicious", other, "--column", "prompt", "--max-new-tokens", 4, "--out", tmp_path / "none")
    assert "found and judged on the same" not in findings(tmp_path / "none")
    (groups / "found_on.json").write_text('{"safety": 3}')
    assert "is not what a run writes" in refuse(*ablate, "--malicious", other, "--column", "prompt",
                                                "--out", tmp_path / "bad")  # fmt: skip


def test_fine_tuning_on_what_is_measured_is_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    succeed("finetune", *MODEL, "--data", "organism:utility", "--utility", "organism:utility", "--steps", 1,
            "--no-save-model", "--out", out)  # fmt: skip
    assert "6 of the 6 prompts of 'utility-test' are in 'utility-test', too (6 the same" in findings(out)


def test_a_mask_is_told_from_the_run_that_found_it(tmp_path: Path) -> None:
    found = tmp_path / "found"
    mask = FreezeMask.layers((3, 4)).save(found / "freeze.safetensors")
    prompts = list(load_prompts("organism:malicious", n=6).prompts)
    (found / "found_on.json").write_text(json.dumps({"malicious": prompts}), encoding="utf-8")
    train = ["finetune", *MODEL, "--data", "organism:new_task", "--steps", 1, "--freeze", mask, "--no-save-model"]
    succeed(*train, "--malicious", "organism:malicious", "--max-new-tokens", 2, "--out", tmp_path / "run")
    said = findings(tmp_path / "run")
    assert "6 of the 6 prompts of 'malicious-test' are in 'malicious', too (6 the same, 0 nearly)" in said


def test_the_studies_say_what_they_find_and_judge_on() -> None:
    one, two, three = (PromptSet(name, (f"{name} how do i do it ?", f"what of {name} ?")) for name in ("a", "b", "c"))
    with pytest.warns(Notice, match="the malicious prompts of the gap is judged on evaluation"):
        assert len(shared_prompts(StudyPrompts(one, two, three))) == 1
    assert shared_prompts(StudyPrompts(one, two, three, evaluation=PromptSet("d", ("nothing of it",)))) == []
    with pytest.warns(Notice, match="the utility data is judged on utility"):
        assert len(shared_of_ssah(SsahPrompts(safety=one, utility=two, malicious=three))) == 1
    with pytest.warns(Notice, match="the safety data that units are scored on is judged on over_rejection"):
        assert (
            len(shared_of_ssah(SsahPrompts(one, two, three, known=PromptSet("d", ("x y",)), over_rejection=one))) == 1
        )


@pytest.mark.parametrize("source", ["organism:aligned", "smollm2:layers-12-16"])
def test_a_models_own_prompts_for_finding_do_not_judge(source: str) -> None:
    def own(name: str, **given: object) -> PromptSet:
        run: Any = SimpleNamespace(
            source=source, where={}, by_set={"column": {}, "responses": {}, "categories": {}}, seed=3, inputs={}
        )
        run.given = lambda option, of: given.get(option)
        return study_prompts(run, name, None)

    names = ["normal", "malicious", "over_rejection", "evaluation", "utility", "refused", "answered"]
    asked = {name: set(own(name).prompts) for name in names}
    for one, other in combinations(names, 2):
        assert not asked[one] & asked[other], (one, other)
    assert own("evaluation", n=5).prompts == own("evaluation").prompts[:5]
    assert len(own("evaluation", n=10_000)) == len(own("evaluation"))
