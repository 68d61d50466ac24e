"""Texts as they are compared: refusals in any dress are refusals, and an answer is another one if a sign differs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.base.notices import Notice
from safecircuits.behavior import Completions, exact_match
from safecircuits.behavior.detectors import DETECTORS
from safecircuits.behavior.early import EarlyVerdict, decided
from safecircuits.behavior.wording import normalise, open_thought, without_thoughts
from safecircuits.prompts.prompt_set import PromptSet

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot provide instructions on how to do so.",
    "As an AI, I must decline. It's not appropriate.",
    "Sorry, no.",
)
ANSWERS = ("Sure! Here's how it's done:", "It's simple. First, take 2 eggs.", "1. Mix, 2. bake.", "The dog's house.")
APOSTROPHES = "'’‘‛´`′＇ʼʹ՚"
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202a\u2066\u180e\ufe0f\x08"
LEADS = (
    "1. ", "2) ", "(3) ", "12: ", "a) ", "- ", "• ", "– ", "> ", ">> ", "* ", "**", "## ", "“", "„", "« ", '"', "‘",
    "\ufeff", "\u200b", "[1] ", "> 1. “",
    "<think>\nIs this harmful? Sure, it is.\n</think>\n\n", "<THINK></THINK>", "<thinking>a\nb</thinking> ",
    "They ask for harm.\n</think>\n\n",
)  # fmt: skip
texts = st.sampled_from(REFUSALS + ANSWERS)


def verdicts(text: str) -> dict[str, bool]:
    return {name: detector(text) for name, detector in DETECTORS.items()}


@given(texts, st.data())
def test_characters_that_nobody_sees_and_marks_never_change_a_verdict(text: str, data: Any) -> None:
    want = verdicts(text)
    dressed = "".join(data.draw(st.sampled_from(APOSTROPHES)) if c == "'" else c for c in text)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(dressed)))
        dressed = dressed[:place] + data.draw(st.sampled_from(UNSEEN)) + dressed[place:]
    lead = data.draw(st.lists(st.sampled_from(LEADS[:22]), max_size=3))
    assert verdicts("".join(lead) + dressed) == want
    thought = data.draw(st.sampled_from(LEADS[22:]))
    assert verdicts(thought + "".join(lead) + dressed) == want


@given(texts, st.sampled_from(["“{}”", "„{}“", "«{}»", "‘{}’", "**{}**", "_{}_", "> {}", '"{}"', "\n\n{}\u2003"]))
def test_what_surrounds_a_text_never_changes_a_verdict(text: str, around: str) -> None:
    assert verdicts(around.format(text)) == verdicts(text)
    assert verdicts(text.replace(" ", "\u00a0")) == verdicts(text)


@given(st.sampled_from(sorted(DETECTORS)), st.sampled_from(APOSTROPHES))
def test_the_phrases_go_through_the_same(name: str, apostrophe: str) -> None:
    mine = sc.PhraseDetector(
        "mine",
        tuple(p.replace("'", apostrophe) for p in DETECTORS[name].phrases),
        DETECTORS[name].where,
        DETECTORS[name].excuses,
    )
    for text in REFUSALS + ANSWERS:
        assert mine(text) == DETECTORS[name](text)


@given(st.text(max_size=30) | st.text(alphabet="ŉΣςß1.)a <think>/*_'ʼ, ", max_size=30))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise(text)
    assert "\u200b" not in once
    if not any(tag in once for tag in ("<think", "</think")):
        assert normalise(once) == once


def test_an_emphasised_word_in_the_middle() -> None:
    assert DETECTORS["opening"]("I **cannot** help")
    assert DETECTORS["opening"]("I’m _sorry_")


def test_an_open_thought_has_answered_nothing_yet() -> None:
    text = "<think>\nI'm sorry, I cannot help. Sorry"
    assert without_thoughts(text).strip() == ""
    assert open_thought(text)
    assert not open_thought(text + "</think>")
    assert not open_thought("I cannot")
    assert not any(verdicts(text).values())
    assert {name: decided(detector, text) for name, detector in DETECTORS.items()} == dict.fromkeys(DETECTORS)
    with pytest.warns(Notice, match="1 of the 2 completions end inside a thought"):
        assert sc.refused([text, "Sorry"]).tolist() == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.refused([text + "</think> I cannot"])


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(DETECTORS)),
    st.sampled_from(
        ["", "1", "1.", "(", "a", "a)", "<", "<thi", "<think>", "<think>x</think", "> ", "I can", "Hi <th"]
    ),
    st.sampled_from(
        ["", " I cannot", ". I cannot", ") sorry", "nk>x</think> I'm sorry", "ink>a</think>not", "> sorry", "2 eggs"]
    ),
)
def test_a_certain_verdict_stays(name: str, text: str, more: str) -> None:
    verdict = decided(DETECTORS[name], text)
    whole = text + more
    if verdict is not None and whole.count("</think>") == whole.count("<think>"):
        assert DETECTORS[name](whole) == verdict


def test_early_stopping_is_off_where_the_prompt_opens_a_thought(tiny_bridge: Any) -> None:
    options: dict[str, Any] = {"alpha": 1.2, "early_stop": True, "max_length": 1, "max_new_tokens": 3}
    on = sc.scaling_grid(tiny_bridge, ["find a lamp"], template="{instruction}", **options)
    off = sc.scaling_grid(tiny_bridge, ["find a lamp"], template="{instruction} <think>", **options)
    assert on.baseline.completions.cut == EarlyVerdict("opening").reason
    assert off.baseline.completions.cut is None


SAME = [
    ("5", "5"), ("5.", "5"), ("Paris.", "paris"), (" the  king\n", "The king"), ("“yes”", '"yes"'), ("it’s", "it's"),
    ("state\u2011of\u2011the\u2011art", "state-of-the-art"),
    ("−5", "-5"), ("\ufeff5", "5"), ("<think>2 + 3</think>\n5", "5"), ("...", "..."), ("a...", "a..."),
    ("cafe\u0301", "caf\u00e9"), ("\u1112\u1161\u11ab", "\ud55c"),
]  # fmt: skip
OTHERS = [
    ("-5", "5"), ("#1", "1"), ("5%", "5"), ("$5", "5"), ("5-", "5"), ("*5", "5"), ("'5", "5"), ("5'", "5"), ("_a", "a"),
    ("3.5", "35"), ("3.50", "3.5"), ("> 5", "5"), ("1. 5", "5"), ("5!", "5"), ("a...", "a"), ("+5", "5"), ("a b", "ab"),
    ("<think>5", "5"), ("", "5"), ("5 6", "5"), (".5", "5"), ("a_b", "ab"), ("2*3", "23"), ("a , b", "a, b"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "wanted"), SAME)
def test_the_same_answer(given: str, wanted: str) -> None:
    assert exact_match([given], [wanted]).tolist() == [True]


@pytest.mark.parametrize(("given", "wanted"), OTHERS)
def test_another_answer(given: str, wanted: str) -> None:
    assert exact_match([given], [wanted]).tolist() == [False]
    if "<" not in given:
        assert exact_match([wanted], [given]).tolist() == [False]


@given(st.text(alphabet="-+#$%*_'\"5a ><().,", max_size=6), st.text(alphabet="-+#$%*_'\"5a ><().,", max_size=6))
def test_answers_differ_unless_white_space_and_a_final_period_make_them_equal(a: str, b: str) -> None:
    def plain(text: str) -> str:
        text = " ".join(text.split())
        return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text

    assert exact_match([a], [b]).tolist() == [plain(a) == plain(b)]


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_an_answer_that_goes_on_is_not_right(backend: str, make_tiny_model: Any) -> None:
    """The limit cuts the answer just behind the reference; whether it goes on, generation without a limit says."""
    model = make_tiny_model(backend, 1)
    prompts = ["find a lamp", "make the cake", "how do i fix the road", "take some salt", "a dog", "is the water"]
    for limit in (1, 2, 3):
        long = sc.generate(model, prompts, max_new_tokens=40, template="none")
        cut = sc.generate(model, prompts, max_new_tokens=limit, template="none")
        assert long.ended is not None
        goes_on = [a != b for a, b in zip(long.texts, cut.texts, strict=True)]
        assert any(goes_on)
        utility = PromptSet("u", tuple(prompts), cut.texts)
        found = sc.evaluate(model, utility=utility, max_new_tokens=limit, template="none").utility
        assert found is not None
        assert found.tolist() == [not more for more in goes_on]


def test_an_answer_that_ends_at_the_limit_is_right(tiny_bridge: Any) -> None:
    """Make the first token of each answer an end, so that every answer of n tokens ends after n."""
    prompts = ["find a lamp", "make the cake"]
    ids: list[list[int]] = []
    sc.generate(tiny_bridge, prompts, max_new_tokens=3, template="none", token_ids=ids)
    tiny_bridge.original_model.generation_config.eos_token_id = [row[2] for row in ids]
    whole = sc.generate(tiny_bridge, prompts, max_new_tokens=9, template="none")
    assert whole.ended == (True, True)
    limit = max(len(tiny_bridge.tokenizer(text, add_special_tokens=False).input_ids) for text in whole.texts)
    behavior = sc.evaluate(
        tiny_bridge, utility=PromptSet("u", tuple(prompts), whole.texts), max_new_tokens=limit, template="none"
    )
    assert behavior.rates["utility"] == 1.0


def test_how_completions_ended_is_kept(tmp_path: Any) -> None:
    prompts = PromptSet("p", ("a", "b"))
    kept = Completions(prompts, ("x", "y"), ended=(True, False))
    loaded = Completions.load(kept.save(tmp_path / "c.jsonl"))
    assert loaded.ended == (True, False)
    assert exact_match(loaded, ["x", "y"]).tolist() == [True, False]
    assert Completions.load(Completions(prompts, ("x", "y")).save(tmp_path / "d.jsonl")).ended is None
    with pytest.raises(ValueError, match="ended says of 1 completions"):
        Completions(prompts, ("x", "y"), ended=(True,))
    assert torch.equal(exact_match([], []), torch.zeros(0, dtype=torch.bool))
