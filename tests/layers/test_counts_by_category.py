"""Categories in every table of counts and curves: each row is what the prompts of the category give by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import safecircuits as sc
from commands import succeed
from safecircuits.behavior import verdicts
from safecircuits.layers import answered_malicious, transplant_study
from safecircuits.units import Candidate, change_scores, patching_curves, score_comparison, sweep_shares

KINDS = ("theft", "fraud", "theft", "fraud", "theft", "poison")
HALF = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def model() -> Any:
    return sc.load_model("organism:aligned")


@pytest.fixture(scope="module")
def base() -> Any:
    return sc.load_model("organism:base")


def with_kinds(name: str) -> sc.PromptSet:
    loaded = sc.load_prompts(f"organism:{name}", n=6)
    return sc.PromptSet(name, loaded.prompts, loaded.responses, KINDS)


def of_kind(prompts: sc.PromptSet, kind: str) -> sc.PromptSet:
    return prompts.subset([row for row, one in enumerate(KINDS) if one == kind])


def alone(measure: Any, prompts: sc.PromptSet, kind: str) -> pd.DataFrame:
    """The rows of a category, by measuring its prompts alone."""
    table = measure(of_kind(prompts, kind))
    assert set(table["category"]) == {kind}
    return table.reset_index(drop=True)


def rows_of(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    return table[table["category"] == kind].reset_index(drop=True)


def test_scaled_blocks(model: Any) -> None:
    borderline = with_kinds("over_rejection")

    def grid(prompts: sc.PromptSet) -> pd.DataFrame:
        return sc.scaling_grid(model, prompts, alpha=1.3, max_length=1, **HALF).categories()

    table = grid(borderline)
    assert len(table) == 9 * 3
    assert table["set"].unique().tolist() == ["over_rejection"]
    for kind in dict.fromkeys(KINDS):
        pd.testing.assert_frame_equal(rows_of(table, kind), alone(grid, borderline, kind))
    assert sc.scaling_grid(model, borderline.prompts, alpha=1.3, max_length=1, **HALF).categories().empty


@pytest.mark.parametrize("early", [False, True])
def test_sweeps_of_bounds(model: Any, early: bool) -> None:
    borderline = with_kinds("over_rejection")
    found = sc.localize(model, borderline, (3, 4), alpha=1.3, early_stop=early, **HALF)
    table = found.categories()
    points = [found.baseline, *found.upper.points, *found.lower.points]
    assert len(table) == 3 * len(points)
    for i, point in enumerate(points):
        said = verdicts(sc.Completions(borderline, point.completions.texts)).verdicts
        for _, row in table.iloc[3 * i : 3 * i + 3].iterrows():
            mine = [one for one, kind in zip(said, KINDS, strict=True) if kind == row["category"]]
            assert (row["hits"], row["n"]) == (mine.count("refuses"), len(mine))
            assert pd.isna(row["incoherent"]) if early else row["incoherent"] == mine.count("incoherent")
            assert pd.isna(row["first"]) == (i == 0)
            assert i == 0 or (row["first"], row["last"]) == tuple(point.layers or ())


def test_the_check_on_harmful_queries(model: Any) -> None:
    harmful = with_kinds("malicious")

    def check(prompts: sc.PromptSet) -> pd.DataFrame:
        return answered_malicious(model, prompts, (3, 5), 0.8, **HALF).categories()

    table = check(harmful)
    assert table["when"].tolist() == ["before"] * 3 + ["after"] * 3
    for kind in dict.fromkeys(KINDS):
        pd.testing.assert_frame_equal(rows_of(table, kind), alone(check, harmful, kind))


def test_transplants(model: Any, base: Any) -> None:
    harmful = with_kinds("malicious")

    def moved(prompts: sc.PromptSet) -> pd.DataFrame:
        return transplant_study(model, base, {"all": (0, 7)}, malicious=prompts, **HALF).categories()

    table = moved(harmful)
    assert table["model"].tolist() == ["source"] * 3 + ["target"] * 3 + ["all"] * 3
    for kind in dict.fromkeys(KINDS):
        pd.testing.assert_frame_equal(rows_of(table, kind), alone(moved, harmful, kind))


def test_removed_units(model: Any) -> None:
    harmful, known = with_kinds("malicious"), sc.load_prompts("organism:utility", n=6)
    normal = sc.load_prompts("organism:normal", n=6)
    scores = [sc.score_units(model, prompts) for prompts in (harmful, known)]

    def swept(prompts: sc.PromptSet) -> pd.DataFrame:
        sets: Any = {"malicious": prompts, "utility": known}
        return sweep_shares(model, *scores, shares=(0.05,), scan="up", **sets).categories()

    def compared(prompts: sc.PromptSet) -> pd.DataFrame:
        sets: Any = {"malicious": prompts, "utility": known}
        candidates = [Candidate("magnitude", "all")]
        return score_comparison(
            model, harmful, known, normal, candidates=candidates, counts=(4, 64), **sets
        ).categories()

    for measure in (swept, compared):
        table = measure(harmful)
        for kind in ("theft",):
            mine, theirs = rows_of(table, kind), alone(measure, harmful, kind)
            # A sweep of fewer prompts may stop elsewhere: what both removed is compared.
            n = min(len(mine), len(theirs))
            assert n >= 2
            pd.testing.assert_frame_equal(mine[:n], theirs[:n])


def test_patched_units(model: Any, base: Any) -> None:
    harmful = with_kinds("malicious")
    scores = change_scores(base, model, sc.load_prompts("organism:malicious", n=20)[10:], method="wchange")

    def patched(prompts: sc.PromptSet) -> pd.DataFrame:
        found = patching_curves(base, model, scores, prompts, counts=[64, 512], controls=1, outgoing=True)
        frame = found.to_frame()
        assert (frame["n"] == len(prompts)).all()
        assert frame["incoherent"].between(0, len(prompts)).all()
        by_kind = found.categories().groupby(["direction", "units", "draw", "count"], sort=False)["hits"].sum()
        assert by_kind.tolist() == (frame["refused"] * frame["n"]).round().astype(int).tolist()
        return found.categories()

    table = patched(harmful)
    for kind in ("theft", "fraud"):
        pd.testing.assert_frame_equal(rows_of(table, kind), alone(patched, harmful, kind))


def test_a_command_writes_them(tmp_path: Path) -> None:
    file, out = tmp_path / "borderline.csv", tmp_path / "grid"
    prompts = with_kinds("over_rejection").prompts
    pd.DataFrame({"prompt": prompts, "category": KINDS}).to_csv(file, index=False)
    command = ["layers", "grid", "--model", "organism:aligned", "--over-rejection", file, "--max-length", 1]
    succeed(*command, "--max-new-tokens", 6, "--normal", "organism:normal", "--n", "normal=3", "--out", out)
    assert (pd.read_csv(out / "tables" / "grid.csv")["ordinary_first_token_kl"] > 0).all()
    table = pd.read_csv(out / "tables" / "grid_by_category.csv")
    assert table.groupby("category")["n"].unique().map(list).to_dict() == {"fraud": [2], "poison": [1], "theft": [3]}
    assert "Grid by category" in (out / "report.html").read_text(encoding="utf-8")
