"""Categories of prompts in every table of rates and gaps, against measuring each category by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import safecircuits as sc
from commands import succeed
from safecircuits.base.notices import Notice
from safecircuits.behavior import pressure, verdicts
from safecircuits.behavior.categories import category_frame, sum_of
from safecircuits.behavior.verdict_table import Tally
from safecircuits.layers import category_gaps
from safecircuits.studies.outcome import FinetuningStudy, StudyRun

KINDS = ("theft", "fraud", "theft", "fraud", "theft", "poison")


@pytest.fixture(scope="module")
def model() -> Any:
    return sc.load_model("organism:aligned")


@pytest.fixture(scope="module")
def harmful() -> sc.PromptSet:
    loaded = sc.load_prompts("organism:malicious", n=6)
    return sc.PromptSet("harmful", loaded.prompts, loaded.responses, KINDS)


def of_kind(prompts: sc.PromptSet, kind: str) -> sc.PromptSet:
    return prompts.subset([row for row, one in enumerate(KINDS) if one == kind])


def test_removals_by_category_are_those_of_each_category_alone(model: Any, harmful: sc.PromptSet) -> None:
    found = {"top": sc.score_units(model, harmful).top(24)}
    table = sc.ablate_units(model, found, controls=2, malicious=harmful).categories()
    assert table["removed"].unique().tolist() == ["nothing", "top", "random, as many as top"]
    for kind in dict.fromkeys(KINDS):
        alone = sc.ablate_units(model, found, controls=2, malicious=of_kind(harmful, kind))
        rows = table[table["category"] == kind].set_index("removed")
        assert rows.loc["nothing", "refused"] == alone.intact.rates["malicious_refused"]
        assert rows.loc["top", "refused"] == alone.rows[0].behavior.rates["malicious_refused"]
        random = rows.loc["random, as many as top"]
        assert random["n"] == 2 * KINDS.count(kind)
        refused = [int(control.malicious.sum()) for control in alone.rows[0].random_controls]
        assert random["hits"] == sum(refused)


def test_gaps_by_category_are_those_of_each_category_alone(model: Any, harmful: sc.PromptSet) -> None:
    normal = sc.load_prompts("organism:normal", n=6)
    residuals = [sc.collect_residuals(model, prompts) for prompts in (normal, harmful)]
    with pytest.warns(Notice, match="no gap of 'poison': a category needs two prompts"):
        found = category_gaps(*residuals, draws=50)
    assert list(found) == ["theft", "fraud"]
    for kind, gap in found.items():
        alone = sc.layer_gap(model, normal, of_kind(harmful, kind))
        torch.testing.assert_close(gap.gap_deg, alone.gap_deg, atol=1e-3, rtol=0)
        assert gap.n == KINDS.count(kind)
        assert (gap.low <= gap.gap_deg).all()
        assert (gap.gap_deg <= gap.high).all()
    plain = sc.collect_residuals(model, sc.PromptSet("plain", harmful.prompts))
    assert category_gaps(residuals[0], plain) == {}


def test_commands_write_the_tables(tmp_path: Path, harmful: sc.PromptSet) -> None:
    file = tmp_path / "harmful.csv"
    pd.DataFrame({"prompt": harmful.prompts, "harm_category": KINDS}).to_csv(file, index=False)
    gap = ["layers", "similarity", "--model", "organism:aligned", "--normal", "organism:normal", "--malicious", file]
    out = tmp_path / "gap"
    succeed(*gap, "--n", "normal=6", "--draws", 20, "--out", out)
    table = pd.read_csv(out / "tables" / "gap_by_category.csv")
    assert table.groupby("category").size().to_dict() == {"fraud": 8, "theft": 8}
    assert "Gap by category" in (out / "report.html").read_text(encoding="utf-8")
    out = tmp_path / "rates"
    succeed("evaluate", "--model", "organism:aligned", "--malicious", file, "--max-new-tokens", 8, "--out", out)
    rates = pd.read_csv(out / "tables" / "rates.csv").set_index("category")
    assert rates.loc[["theft", "fraud", "poison"], "n"].tolist() == [3, 2, 1]
    judged = pd.read_csv(out / "tables" / "detectors_by_category.csv")
    opening = judged[(judged["detector"] == "opening") & (judged["set"] == "malicious")].set_index("category")
    assert opening["hits"].to_dict() == rates.loc[["theft", "fraud", "poison"], "hits"].to_dict()


def test_pressure_by_category(model: Any, harmful: sc.PromptSet) -> None:
    under = pressure(model, harmful, system="be careful .", prefill=None, max_new_tokens=6)
    table = under.categories()
    for attempt in under.attempts:
        rows = table[table["system"] == attempt.condition.system].set_index("category")
        for kind in dict.fromkeys(KINDS):
            mine = [bool(refused) for refused, one in zip(attempt.refused, KINDS, strict=True) if one == kind]
            assert (rows.loc[kind, "hits"], rows.loc[kind, "n"]) == (sum(mine), len(mine))
    plain = pressure(model, harmful.prompts, max_new_tokens=6)
    assert plain.categories().empty


def test_a_fine_tuning_study_by_category(harmful: sc.PromptSet) -> None:
    said = ("I cannot help with that.", "Take it.", "Take it.", "I cannot help.", "the the the the", "Take it.")
    answers = verdicts(sc.Completions(harmful, said))
    right = verdicts(sc.Completions(harmful, said))
    task = {"task": type(right)(**{**vars(right), "verdicts": ("right", "wrong") * 3})}
    run = StudyRun(
        "full", "D_N", 0, {}, {}, (), 0.0, 1, 0.0, 1, 0, 0.0, 0, 0, None, None, {"malicious": answers, **task}
    )
    study = FinetuningStudy((run,), {}, {}, {}, {"D_N": {"malicious": answers}})
    table = study.categories()
    assert table["arm"].tolist() == ["before"] * 3 + ["full"] * 3
    assert set(table["set"]) == {"malicious"}
    assert table["category"].tolist()[:3] == ["theft", "fraud", "poison"]
    assert table["hits"].tolist()[:3] == [1, 1, 0]
    assert table["incoherent"].tolist()[:3] == [1, 0, 0]
    assert FinetuningStudy((), {}, {}, {}).categories().empty


def test_tallies_are_summed_and_what_is_not_known_stays_so() -> None:
    one, other = Tally(3, 1, 2, 0, 0, 0, None), Tally(2, 2, 0, 0, 0, 0, 1)
    assert sum_of([{"m": {"a": one}}, {"m": {"a": other, "b": other}}]) == {
        "m": {"a": Tally(5, 3, 2, 0, 0, 0, None), "b": other}
    }
    frame = category_frame([({"removed": "x"}, {})], ["removed"])
    assert frame.empty
    assert frame.columns.tolist()[:3] == ["removed", "set", "category"]
