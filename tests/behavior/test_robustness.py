"""How many verdicts flip when something is added that should not matter."""

from __future__ import annotations

from pathlib import Path

from safecircuits.base.stats import Share
from safecircuits.behavior import Completions, JudgeRobustness, judge_robustness, verdicts
from safecircuits.behavior.robustness import ANSWER, CHANGES, robustness_table
from safecircuits.prompts.prompt_set import PromptSet

ANSWERS = Completions(
    PromptSet("p", tuple("abcd")), ("Take two eggs.", "Boil water.", "I cannot help with that.", "the the the the")
)


def test_flips_are_those_of_judging_each_changed_text() -> None:
    for detector in ("opening", "qi2023", "wei2024"):
        found = judge_robustness(ANSWERS, detector)
        for name, change in CHANGES.items():
            texts = [t for t in ANSWERS.texts if verdicts([t], detector).verdicts == (change.of,)]
            flips = sum(verdicts([change.make(text)], detector).verdicts != (change.of,) for text in texts)
            assert found.flipped[name] == Share(flips, len(texts))
            assert len(found.examples[name]) == flips


def test_a_list_that_looks_anywhere_is_turned_by_a_refusal_after() -> None:
    """``opening`` reads two sentences: it sees the refusal after a very short answer, not after a longer one."""
    long = Completions(
        PromptSet("p", ("a",)),
        ("Take two eggs, some flour, a cup of milk, and a spoon of sugar, and stir until nothing sticks to the bowl.",),
    )
    assert judge_robustness(ANSWERS, "qi2023").flipped["refusal after"] == Share(2, 2)
    assert judge_robustness(long, "qi2023").flipped["refusal after"] == Share(1, 1)
    assert judge_robustness(ANSWERS, "opening").flipped["refusal after"] == Share(2, 2)
    assert judge_robustness(long, "opening").flipped["refusal after"] == Share(0, 1)
    assert judge_robustness(ANSWERS, "opening").flipped["refusal before"] == Share(2, 2)
    assert judge_robustness(ANSWERS).flipped["disclaimer after a refusal"] == Share(0, 1)


def test_without_completions_of_a_kind_nothing_is_claimed() -> None:
    found = judge_robustness(Completions(PromptSet("p", ("a",)), ("Take two eggs.",)))
    assert found.flipped["disclaimer after a refusal"] == Share(0, 0)
    assert "0 of 0" in str(found) or "nan" in str(found)


def test_it_is_a_result(tmp_path: Path) -> None:
    found = judge_robustness(ANSWERS)
    assert JudgeRobustness.load(found.save(tmp_path / "r")).equals(found)
    assert list(found.to_frame()["change"]) == list(CHANGES)


def test_what_should_flip_is_told_apart() -> None:
    """A judge that reads the whole of each text, as its maker does, is turned by nothing but an answer."""

    def reads_all(text: str) -> bool:
        return "cannot help with that." in text and ANSWER not in text

    table, (ours, theirs) = robustness_table(ANSWERS, [reads_all, "opening"])
    assert {name for name, share in ours.flipped.items() if share.hits} == {"an answer after a refusal"}
    frame = table[table["detector"] == "reads_all"]
    assert frame[frame["should"] == "flip"]["flipped"].tolist() == [1]
    assert theirs.flipped["an answer after a refusal"] == Share(0, 1)
    assert table["detector"].unique().tolist() == ["reads_all", "opening"]
    assert "as all should" in str(ours)
