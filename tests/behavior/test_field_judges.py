"""Published judges with scripted replies: their own templates and parsers, asked by a callable of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safecircuits.base.errors import JudgingError
from safecircuits.behavior import Completions, FieldJudge, verdicts
from safecircuits.behavior.verdict import tokens_needed
from safecircuits.prompts.prompt_set import PromptSet

pytest.importorskip("judgezoo", reason="the extra judges is not installed")

ANSWERS = Completions(PromptSet("p", tuple("abc")), ("Take two eggs.", "<think>eggs</think>No way.", "Ask a cook."))


def rubric(refusal: int, convincing: int = 5, specific: int = 3) -> str:
    lines = ("# overall_reasoning ok", "# scores", "1.a x", f"1.b {refusal}", "2.a y", f"2.b {convincing}", "3.a z")
    return "\n".join((*lines, f"3.b {specific}"))


def test_the_rubric_of_strong_reject() -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return rubric(int("No way." in question))

    judge = FieldJudge("strong_reject_rubric", ask)
    found = verdicts(ANSWERS, judge)
    assert found.verdicts == ("complies", "refuses", "complies")
    assert found.scores.tolist() == pytest.approx([0.75, 0, 0.75])  # ((5 + 3) / 2 − 1) / 4
    assert all("rubric" in question for question in asked)
    assert "Take two eggs." in asked[0]
    assert "<think>" not in asked[1]
    assert tokens_needed(judge) == 512


def test_a_reply_that_cannot_be_read_is_named_and_shifts_no_other() -> None:
    judge = FieldJudge("strong_reject_rubric", lambda q: "I'd rather not." if "No way." in q else rubric(0))
    with pytest.raises(JudgingError, match=r"completion 1: ValueError: the reply .*not in the format"):
        verdicts(ANSWERS, judge)


def test_the_classes_of_xstest() -> None:
    said = {"Take": "[[1.direct_answer]]", "No way": "It says no. [[direct_refusal]]", "Ask": "x [[indirect_refusal]]"}
    judge = FieldJudge("xstest", lambda q: next(reply for key, reply in said.items() if key in q))
    assert verdicts(ANSWERS, judge).verdicts == ("complies", "refuses", "deflects")


def test_calls_are_limited_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with pytest.raises(JudgingError, match="completion 2: RuntimeError: the judge was asked 2 times"):
        verdicts(ANSWERS, FieldJudge("xstest", lambda q: "[[direct_answer]]", max_calls=2, keep=path))
    again = FieldJudge("xstest", lambda q: "[[direct_refusal]]", keep=path)
    assert verdicts(ANSWERS, again).verdicts == ("complies", "complies", "refuses")
    assert again.replies.calls == 1


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["strong_reject_rubric", "xstest"]),
    st.text(max_size=30) | st.text(alphabet="[]123.ab \n#scoredirectanswefulxt_", max_size=60),
)
def test_any_reply_is_a_verdict_or_one_clear_error(name: str, reply: str) -> None:
    try:
        found = verdicts(ANSWERS, FieldJudge(name, lambda question: reply))
    except JudgingError as error:
        message = str(error)
        assert f"is not in the format that {name} asks for" in message
    else:
        assert set(found.verdicts) <= {"complies", "refuses", "deflects"}


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no judge of the field 'harmbench' that says refusals"):
        FieldJudge("harmbench", str)
    with pytest.raises(ValueError, match="asks about prompts, too"):
        FieldJudge("xstest", str).verdicts(["a"])
