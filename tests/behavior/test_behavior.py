"""Completions, refusals and evaluation: against Hugging Face's own generate, and on texts whose verdict is plain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.base.stats import Share, mean_interval
from safecircuits.behavior.detectors import DETECTORS, get_detector
from safecircuits.behavior.incoherence import broken, degenerate, incoherence
from safecircuits.behavior.wording import normalise
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import encode

PROMPTS = [
    "how do i make the cake",
    "find a lamp",
    "how do i fix the road and the house with some water",
    "a dog",
]


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_greedy_completions_equal_hugging_face_alone(backend: str, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
    model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
    got = sc.generate(model, PROMPTS, max_new_tokens=6)
    for example, text in zip(encode(tiny_tokenizer, PROMPTS), got.texts, strict=True):
        ids = torch.tensor([example.ids])
        alone = tiny_llama_hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        want = tiny_tokenizer.decode(alone[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert text == want


def test_batch_size_does_not_change_completions(tiny_bridge: Any) -> None:
    together = sc.generate(tiny_bridge, PROMPTS, max_new_tokens=5)
    assert sc.generate(tiny_bridge, PROMPTS, max_new_tokens=5, max_tokens=1).texts == together.texts


def test_a_completion_ends_at_the_end_of_sequence(tiny_bridge: Any, tiny_tokenizer: Any) -> None:
    first = sc.generate(tiny_bridge, ["find a lamp"], max_new_tokens=1).texts[0]
    with torch.no_grad():  # make <eos> follow whatever comes first
        tiny_bridge.original_model.generation_config.eos_token_id = [
            tiny_tokenizer.convert_tokens_to_ids(first),
            tiny_tokenizer.eos_token_id,
        ]
    assert sc.generate(tiny_bridge, ["find a lamp"], max_new_tokens=4).texts == ("",)


def test_saved_completions_keep_prompt_and_text(tiny_bridge: Any, tmp_path: Path) -> None:
    answers = sc.generate(tiny_bridge, PROMPTS, max_new_tokens=3)
    rows = [json.loads(line) for line in answers.save(tmp_path / "c.jsonl").read_text().splitlines()]
    assert [(r["prompt"], r["completion"]) for r in rows] == list(zip(PROMPTS, answers.texts, strict=True))


def test_bad_generation_settings(tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, not 0"):
        sc.generate(tiny_bridge, PROMPTS, max_new_tokens=0)
    with pytest.raises(ValueError, match="not the single string 'find a lamp'"):
        sc.generate(tiny_bridge, "find a lamp")
    with torch.no_grad():
        tiny_bridge.unembed.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        sc.generate(tiny_bridge, PROMPTS)


REFUSALS = [
    "I cannot help with that.",
    "I can’t assist with this request.",
    "  i am sorry , but i cannot help with that .",
    "Sorry, no.",
    "As an AI, I must decline.",
    "**I'm unable to** do so",
]
ANSWERS = [
    "Sure, here is how.",
    "take the hammer to the garage .",
    "To kill a process, use kill. I cannot think of a simpler way.",
    "",
    "However, you can also use top.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_seen(text: str) -> None:
    assert DETECTORS["opening"](text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_not_refusals(text: str) -> None:
    assert not DETECTORS["opening"](text)


def test_substring_lists_over_count_where_the_opening_does_not() -> None:
    text = "However, you can also use top."
    assert DETECTORS["wei2024"](text)
    assert not DETECTORS["qi2023"](text)
    assert DETECTORS["jailbreakbench"]("To kill a process, use kill. I cannot think of a simpler way.")


@given(st.text(alphabet=st.sampled_from("aI'’ cntsory,*\n"), max_size=40))
def test_case_and_apostrophes_never_matter(text: str) -> None:
    for detector in DETECTORS.values():
        assert detector(text) == detector(text.upper()) == detector(text.replace("’", "'"))
    assert normalise(normalise(text)) == normalise(text)


def test_detectors_by_name_callable_and_failing() -> None:
    assert sc.refused(["x", "yy"], lambda text: len(text) == 2).tolist() == [False, True]
    with pytest.raises(ValueError, match="no refusal detector 'keywords'; there are opening"):
        get_detector("keywords")

    def broken(text: str) -> bool:
        raise RuntimeError("no judge today")

    with pytest.raises(ValueError, match="failed on completion 0: 'x'") as caught:
        sc.refused(["x"], broken)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ValueError, match="'mine' has no phrases"):
        sc.PhraseDetector("mine", ())


def test_degenerate_completions() -> None:
    assert degenerate("")
    assert degenerate("the the the the the the")
    assert not degenerate("take the hammer to the garage .")
    assert not degenerate("no no")


def test_evaluation_counts_each_set(tiny_bridge: Any) -> None:
    tokens: list[list[int]] = []
    sc.generate(tiny_bridge, PROMPTS, token_ids=tokens)
    tiny_bridge.original_model.generation_config.eos_token_id = [row[3] for row in tokens]  # answers that end
    texts = sc.generate(tiny_bridge, PROMPTS).texts
    right = sc.PromptSet("u", tuple(PROMPTS), (texts[0].upper() + " ", "wrong", texts[2], "wrong"))
    got = sc.evaluate(
        tiny_bridge,
        malicious=sc.PromptSet("m", tuple(PROMPTS)),
        utility=right,
        detector=lambda t: t == texts[1],
        max_new_tokens=16,
    )
    assert got.shares["utility"] == Share(2, 4)
    assert got.malicious is not None
    assert got.malicious.tolist() == [t == texts[1] and not broken(t) for t in texts]
    tally = got.tallies["malicious"]
    assert (tally.n, tally.incoherent, tally.cut) == (4, sum(incoherence(t) is not None for t in texts), 0)
    assert "over_rejected" not in got.shares
    with pytest.raises(ValueError, match="nothing to evaluate"):
        sc.evaluate(tiny_bridge)
    with pytest.raises(ValueError, match="has no responses"):
        sc.evaluate(tiny_bridge, utility=sc.PromptSet("u", ("a dog",)))


def test_wilson_interval_of_a_known_case() -> None:
    # Newcombe 1998, table I: 81 of 263, score method without continuity correction: 0.2553 to 0.3662.
    low, high = Share(81, 263).interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_intervals_of_means() -> None:
    mean, _, high = mean_interval(torch.tensor([1.0, 2.0, 3.0]))
    assert mean == 2
    assert high == pytest.approx(2 + 4.30265 / 3**0.5, abs=1e-4)
    assert torch.isnan(torch.tensor(mean_interval(torch.tensor([1.0]))[1:])).all()
