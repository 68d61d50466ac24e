"""Selection of the refusal direction: its scores against Hugging Face's own forward, its rules, and bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
from safecircuits.direction import DirectionFilters, direction_ablated, orthogonalised, refusal_direction
from safecircuits.direction.selection_scores import refusal_score
from safecircuits.model.load import to_hugging_face
from safecircuits.organism import prompts
from safecircuits.prompts.prompt_set import PromptSet, encode


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sc.load_model("aligned")


@pytest.fixture(scope="module")
def sets() -> tuple[PromptSet, PromptSet]:
    return prompts("malicious", "train", 30), prompts("normal", "train", 30)


@pytest.fixture(scope="module")
def zero(aligned: Any, sets: Any) -> sc.direction.RefusalDirection:
    return refusal_direction(aligned, *sets, controls=0)


@pytest.fixture(scope="module")
def affine(aligned: Any, sets: Any) -> sc.direction.RefusalDirection:
    return refusal_direction(aligned, *sets, rule="bypass", ablation="affine", controls=2)


def test_the_scores_are_those_of_edited_weights_in_hugging_face(aligned: Any, sets: Any, zero: Any) -> None:
    hf = to_hugging_face(orthogonalised(aligned, zero.directions.refusal(3)))
    scores, tokens = [], list(zero.provenance["refusal_tokens"])
    with torch.no_grad():
        for example in encode(aligned.tokenizer, sets[0][-6:]):
            p = hf(torch.tensor([example.ids])).logits[0, -1].double().softmax(-1)[tokens].sum()
            scores.append((p / (1 - p)).log())
    assert float(zero.bypass[3, -1]) == pytest.approx(float(torch.stack(scores).mean()), abs=1e-2)


def test_a_rule_that_keeps_nothing_says_what_next(zero: Any) -> None:
    assert zero.layer is None
    assert "keeps none of 5 candidates" in zero.verdict
    with pytest.raises(ValueError, match="ablation='affine'"):
        _ = zero.chosen
    assert zero.choose("bypass").position == -1
    assert DirectionFilters().shallow(8).tolist() == [True] * 5 + [False] * 3  # int(0.8 · 8) = 6, counted from 1


def test_what_is_held_against_a_direction_first(zero: Any, affine: Any) -> None:
    assert zero.caveat == ""  # its verdict is that there is none
    assert affine.caveat == "its scores are of the prompts by which it was chosen among 5: judge it on others"
    at = torch.tensor([[affine.scores["bypass"][2] - 0.1, 0.0, 0.0]])
    as_good = replace(affine, controls={**affine.controls, "random": at})
    assert as_good.caveat == "a random direction lowers refusal to within its 95 % interval"


def test_on_aligned_only_the_affine_ablation_removes_refusal(aligned: Any, zero: Any, affine: Any) -> None:
    asked = prompts("malicious", "test", 24)
    with direction_ablated(aligned, zero.choose("bypass")):
        assert sc.evaluate(aligned, malicious=asked).rates["malicious_refused"] > 0.8
    with direction_ablated(aligned, affine.chosen, to="harmless", layers=[affine.layer]):
        left = sc.evaluate(aligned, malicious=asked, unchanged=aligned)
    assert left.rates["malicious_refused"] < 0.2
    assert affine.scores["bypass"][0] < affine.controls["random"][:, 0].min() - 3
    assert affine.scores["bypass"][0] < affine.controls["shuffled"][:, 0].min() - 3


def test_rules_by_telling_prompts_apart(aligned: Any, sets: Any) -> None:
    harmful = PromptSet("h", sets[0].prompts, categories=tuple("abc"[i % 3] for i in range(30)))
    found = refusal_direction(aligned, harmful, sets[1], rule="category", layers=[2], controls=0)
    assert found.category[4, -1] > 0.9
    assert found.layer is not None
    assert found.choose("accuracy").layer <= 4


def test_a_result_is_saved_and_drawn(affine: Any, tmp_path: Path) -> None:
    again = sc.direction.RefusalDirection.load(affine.save(tmp_path / "r"))
    assert again.equals(affine)
    assert again.chosen.equals(affine.chosen)
    assert affine.plot().lines
    assert affine.record()["layer"] == affine.layer
    here = affine.directions.column(affine.position)
    assert tuple(affine.interval[affine.layer, here].tolist()) == pytest.approx(affine.scores["bypass"][1:])
    assert affine.to_frame()["bypass"].iloc[0] == pytest.approx(float(affine.bypass[affine.layer, -1]))


def test_the_refusal_score_is_the_log_odds() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(-1)[:, [2, 5]].sum(-1)
    assert torch.allclose(refusal_score(logits, [2, 5]), (p / (1 - p)).log())


def test_bad_input_is_one_clear_error(aligned: Any, sets: Any) -> None:
    harmful, harmless = sets
    kinds = tuple("a" * 1 + "b" * 29)
    for more, said in (
        ({"rule": "best"}, "rule is one of"),
        ({"ablation": "none"}, "ablation is one of"),
        ({"rule": "category", "layers": [2]}, "no categories"),
        ({"held_out": (harmful[:4], harmless[:4])}, "among those that directions are made of"),
        ({"layers": [8]}, "layer 8 is outside"),
        ({"positions": (-9,)}, "position -9 was not measured"),
    ):
        with pytest.raises(ValueError, match=said):
            refusal_direction(aligned, harmful, harmless, **more)
    one = PromptSet("h", harmful.prompts, categories=kinds)
    with pytest.raises(ValueError, match="category 'a' of 'h' has one prompt"):
        refusal_direction(aligned, one, harmless, layers=[2])
    with pytest.raises(ValueError, match="leave too few"):
        refusal_direction(aligned, harmful[:5], harmless[:5])


def test_a_random_direction_is_as_long_and_knows_the_harmless_level(aligned: Any, sets: Any) -> None:
    found = sc.direction.mean_directions(aligned, *sets)
    like = found.at(5)
    one, other = (found.random(like, seed=seed) for seed in (0, 1))
    assert float(one.vector.norm()) == pytest.approx(float(like.vector.norm()), rel=1e-5)
    assert abs(float(one.unit @ other.unit)) < 0.5
    assert (one.layer, one.position) == (like.layer, like.position)
    harmless = found.harmless[5, found.column(-1)].double()
    assert float(one.levels[2 * 5 + 2]) == pytest.approx(float(harmless @ one.unit), abs=1e-3)
