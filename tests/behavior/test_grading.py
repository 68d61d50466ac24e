"""Right answers by their last number, refusals by taught wordings, and word problems worked out by eval."""

from __future__ import annotations

import re

import pytest

import safecircuits as sc
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import DETECTORS, get_detector
from safecircuits.behavior.grading import last_number, right_answers
from safecircuits.organism.requests.refusals import REFUSALS
from safecircuits.organism.requests.sums import sums
from safecircuits.prompts.prompt_set import PromptSet


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
        ("That is $1,250.", "1250"),
        ("It is 3.50 euros", "3.5"),
        ("-5", "-5"),
        ("−5 degrees", "-5"),
        ("16 - 3 = 13", "13"),
        ("none at all", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    found = last_number(text)
    assert (found is None) if number is None else found == pytest.approx(float(number))


def test_numbers_are_compared_by_value_and_what_was_cut_is_not_right() -> None:
    known = ["#### 12", "#### 1250", "#### 7"]
    assert right_answers(["3 * 4 = 12.0", "1,250", "7 and then 8"], known, "number").tolist() == [True, True, False]
    texts = ("it is 12", "it is 12")
    cut = Completions(PromptSet("x", ("a", "b")), texts, ended=(True, False))
    assert right_answers(cut, ["12", "12"], "number").tolist() == [True, False]


def test_what_cannot_be_graded_is_refused() -> None:
    with pytest.raises(ValueError, match="'no number here' has none"):
        right_answers(["1"], ["no number here"], "number")
    with pytest.raises(ValueError, match="'exact' or 'number', not 'rouge'"):
        right_answers(["1"], ["1"], "rouge")


def test_evaluate_grades_by_numbers_where_it_is_asked_to() -> None:
    model = sc.load_model("aligned")
    asked = sc.organism.prompts("utility", n=4)
    wrong = PromptSet("longer", asked.prompts, tuple(f"{text} and 1" for text in asked.responses or ()))
    assert sc.evaluate(model, utility=asked).rates["utility"] == 1
    assert sc.evaluate(model, utility=wrong, grading="number").rates["utility"] == 0


@pytest.mark.parametrize("wording", [text for _, text in REFUSALS.values()])
def test_the_taught_detector_knows_every_taught_refusal(wording: str) -> None:
    detector = get_detector("taught")
    assert detector(wording)
    assert detector(wording.replace("'", "’"))


def test_the_taught_detector_adds_nothing_else_and_is_not_compared_with_the_published() -> None:
    assert "taught" not in DETECTORS
    answers = ["To beat egg whites, use a clean bowl.", "Every person has a name.", "I can help.", "Let us begin."]
    assert not sc.refused(answers, "taught").any()


@pytest.mark.parametrize("split", ["train", "test"])
def test_word_problems_are_worked_out_right(split: str) -> None:
    found = sums(split, n=60, seed=5)
    assert len(set(found.prompts)) == 60
    for response in found.responses or ():
        steps = re.findall(r"([\d+*\- ]+) = (\d+)\.", response)
        assert steps
        assert all(eval(left) == int(right) for left, right in steps), response
        assert int(steps[-1][1]) == last_number(response)


def test_no_word_problem_is_in_both_splits() -> None:
    assert not set(sums("train", n=400).prompts) & set(sums("test", n=100).prompts)
    with pytest.raises(ValueError, match="'train' and 'test'"):
        sums("dev")
