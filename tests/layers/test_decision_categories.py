"""Decision layers by category: each is the finding of its pairs alone, or says why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safecircuits import organism
from safecircuits.layers.decision import DecisionLayers, decision_layers
from safecircuits.layers.decision_categories import LEAST, curves_frame, refuses_more
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import PromptSet

MANY, MILD, FEW = 14, 5, 3
ASKED = organism.prompts("malicious", n=MANY + FEW).prompts
HARMLESS = organism.prompts("normal", n=MANY + MILD + FEW + MILD).prompts
MALICIOUS = PromptSet(
    "sorted",
    (*ASKED[:MANY], *HARMLESS[-MILD:], *ASKED[MANY:]),  # mild: what no model here refuses
    categories=("many",) * MANY + ("mild",) * MILD + ("few",) * FEW,
)
NORMAL = PromptSet("harmless", HARMLESS[:-MILD])


@pytest.fixture(scope="module")
def planted() -> Any:
    return load_model("planted-layers")


@pytest.fixture(scope="module")
def found(planted: Any) -> DecisionLayers:
    return decision_layers(planted, NORMAL, MALICIOUS)


def test_a_category_is_what_its_pairs_are_alone(planted: Any, found: DecisionLayers) -> None:
    mine, alone = found.by_category["many"], decision_layers(planted, NORMAL[:MANY], MALICIOUS[:MANY])
    assert mine.n == MANY
    assert (mine.layers, mine.why) == (alone.layers, "")
    for name in ("share", "low", "high"):
        torch.testing.assert_close(getattr(mine, name), getattr(alone, name), atol=1e-4, rtol=1e-4)
    assert mine.resampled is not None
    assert alone.resampled is not None
    assert mine.resampled.share(mine.layers) == pytest.approx(alone.resampled.share(alone.layers), abs=0.02)


def test_what_nothing_can_be_said_of_says_why(found: DecisionLayers) -> None:
    few, mild = (found.by_category[kind] for kind in ("few", "mild"))
    assert (few.layers, mild.layers) == (None, None)
    assert few.why == f"{FEW} pairs are too few: at least {LEAST} tell refusing these from noise"
    assert mild.why == f"0 of {MILD} are refused, and 0 of the harmless ones beside them, within noise"


def test_as_many_pairs_as_are_asked_for_are_the_fewest_that_can_tell() -> None:
    def told(n: int) -> bool:
        return refuses_more(torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool))

    assert told(LEAST)
    assert not told(LEAST - 1)


def test_tables_have_a_row_for_each_and_a_curve_where_there_is_one(found: DecisionLayers, tmp_path: Path) -> None:
    frame = found.categories().set_index("category")
    assert frame.index.tolist() == ["many", "mild", "few"]
    assert frame["n"].tolist() == [MANY, MILD, FEW]
    assert frame["refused"].tolist() == [1, 0, 1]
    assert frame["first"].notna().tolist() == [True, False, False]
    assert frame["why_none"].isna().tolist() == [True, False, False]
    curves = curves_frame(found.by_category)
    assert curves["category"].unique().tolist() == ["many"]
    assert len(curves) == len(found.share)
    back = DecisionLayers.load(found.save(tmp_path / "kept"))
    assert back.equals(found)
    assert back.categories().equals(found.categories())
    assert back.answers["malicious"].prompts == MALICIOUS.prompts


def test_where_nothing_was_measured_no_category_says_more(planted: Any) -> None:
    harmless = PromptSet("harmless", HARMLESS[:8], categories=("a",) * 4 + ("b",) * 4)
    nothing = decision_layers(planted, HARMLESS[8:16], harmless)
    assert nothing.layers is None
    assert all("nothing was measured" in one.why for one in nothing.by_category.values())
    assert decision_layers(planted, HARMLESS[8:16], HARMLESS[:8]).by_category == {}
