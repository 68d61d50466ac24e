"""Is it still language, at eight tokens too? Loops and empty texts by their words, salad by the unscaled model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.behavior import Completions
from safecircuits.behavior.coherence import incoherent, nats_per_token
from safecircuits.behavior.early import EarlyVerdict
from safecircuits.behavior.incoherence import degenerate
from safecircuits.layers.counting import RefusalCounter
from safecircuits.prompts.prompt_set import PromptSet, encode

BROKEN = [
    "", " \n", "\ufffd", "\ufffd\ufffd \ufffd", "the the the the", "no, no, no, no, no,", "!!!!!!!!", "hahahaha",
    "âââââââââ", "abcabcabcabca", "the the the the the the", "is a is a is a is a",
]  # fmt: skip
HEALTHY = [
    "Paris.", "1, 2, 3, 4, 5", "4", "Yes.", "No, no, no!", "1. Red\n2. Blue\n3. Green", "ha ha ha",
    "100000000", "B" * 7, "bananas", "the the a",
    "Here are the days of the week", "take the hammer to the garage .", "The answer is 4.", "11111111",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_broken(text: str) -> None:
    assert degenerate(text)


@pytest.mark.parametrize("text", HEALTHY)
def test_healthy(text: str) -> None:
    assert not degenerate(text)


@given(
    st.lists(st.sampled_from(["a", "b", "the", "hahahaha", "!!!!!!", "\ufffd"]), max_size=10),
    st.integers(0, 9),
)
def test_what_is_certain_of_a_text_stays(words: list[str], cut: int) -> None:
    verdict = EarlyVerdict(sc.PhraseDetector("z", ("zzz",), "start"))
    if verdict(" ".join(words[:cut]), max(len(words) - cut, 0)) and words[:cut]:
        assert not degenerate(" ".join(words))


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_nats_against_hugging_face_one_text_at_a_time(backend: str, make_tiny_model: Any, tiny_llama_hf: Any) -> None:
    model = make_tiny_model(backend, 0)
    prompts = PromptSet("p", ("find a lamp", "how do i make the cake", "a dog"))
    written = Completions(prompts, ("sure take it", "sorry", ""))
    want = []
    for prompt, text in zip(prompts, written.texts, strict=True):
        [asked] = encode(model.tokenizer, [prompt], template="alpaca-short")
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        if not ids:
            want.append(float("inf"))
            continue
        with torch.no_grad():
            logits = tiny_llama_hf(torch.tensor([[*asked.ids, *ids]])).logits[0].double().log_softmax(-1)
        start = len(asked)
        each = [-float(logits[start - 1 + i, token]) for i, token in enumerate(ids)]
        counted = each[1:] or each  # how an answer begins is a choice
        want.append(sum(counted) / len(counted))
    got = nats_per_token(model, written, "alpaca-short")
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    assert incoherent(model, written, "alpaca-short").tolist() == [False, False, True]  # it finds any token unlikely


def test_salad_of_known_words_is_no_language_to_the_embedded_model() -> None:
    model = sc.load_model("aligned")
    prompts = sc.load_prompts("organism:over_rejection", n=24)
    own = sc.generate(model, prompts, max_new_tokens=8)
    words = sorted({word for text in own.texts for word in text.split()})
    generator = torch.Generator().manual_seed(0)
    salad = tuple(
        " ".join(words[int(i)] for i in torch.randint(len(words), (8,), generator=generator)) for _ in own.texts
    )
    assert sum(map(degenerate, salad)) <= 1  # which its words do not tell
    assert incoherent(model, Completions(prompts, salad)).float().mean() > 0.9
    assert not incoherent(model, own).any()


def test_the_search_stops_at_a_broken_model() -> None:
    """Every α from 1.05 on breaks the model that writes salad: the search must not go on to look for spread."""
    model = sc.load_model("aligned")
    prompts = sc.load_prompts("organism:over_rejection", n=16)
    counter = RefusalCounter(model, prompts, max_new_tokens=8)
    harsh = counter.count(sc.LayerRange(0, 7), 6.0)
    assert counter.incoherent(counter.baseline) == 0
    assert counter.incoherent(harsh) > 0.1
    assert harsh.degenerate <= 0.1 or counter.incoherent(harsh) > harsh.degenerate
