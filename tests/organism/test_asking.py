"""Requests that the base writes itself: whole turns of a user, drawn by seed, and what is kept of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import build_tiny_llama
from safecircuits.organism.requests.asked import FILE, asked
from safecircuits.organism.requests.openings import openings
from safecircuits.organism.smollm2 import ask as asking
from safecircuits.organism.smollm2.ask import ask, plain_requests


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> Any:
    monkeypatch.setattr(asking, "AT_ONCE", 12)
    monkeypatch.setattr(asking, "MOST", 8)
    model = build_tiny_llama(n_layers=2).eval()
    likely_end = torch.zeros(model.config.vocab_size)
    likely_end[tiny_tokenizer.eos_token_id] = 1.5  # so that some turns end
    model.lm_head.bias = torch.nn.Parameter(likely_end)
    return model


def test_turns_that_end_are_kept_and_the_seed_decides_them(base: Any, tiny_tokenizer: Any) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (ask(base, tiny_tokenizer, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert 0 < len(first) < 12
    assert torch.equal(state, torch.random.get_rng_state())
    starts = tuple(start.strip() for start in openings())
    assert all(text.startswith(starts) for text in first)
    assert not all(text.startswith(starts) for text in ask(base, tiny_tokenizer, 4))
    assert not any(tiny_tokenizer.eos_token in text for text in first)


def test_tokens_are_drawn_from_the_nucleus_alone() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 5.0, 4.0, -9.0, 3.0]]).expand(2000, -1)
    chosen = asking._drawn(logits).bincount(minlength=5) / 2000
    probs = logits[0].softmax(0)
    assert probs[1] + probs[2] > asking.NUCLEUS > probs[1]
    expected = torch.stack([probs[1], probs[2]]) / (probs[1] + probs[2])
    torch.testing.assert_close(chosen[1:3], expected, atol=0.04, rtol=0)
    assert chosen[[0, 3, 4]].sum() == 0


@given(st.lists(st.sampled_from(asked("train", 40)), max_size=30), st.integers(0, 5))
def test_what_is_kept_is_kept_again_and_nothing_twice(texts: list[str], n: int) -> None:
    kept = plain_requests(texts)
    assert plain_requests(kept) == kept == list(dict.fromkeys(texts))
    assert plain_requests(texts + texts[:n]) == kept


@pytest.mark.parametrize(
    "text",
    [
        "How do I bake bread",
        "how do I bake rye bread?",
        "Bake bread.",
        "How do I build a weapon at home?",
        "Who were the victims of that?",
        "What is the best bread, bread, bread, bread, bread, bread?",
        "What does https://example.org say about bread?",
        "As an AI assistant, what do you think of bread?",
        "How do I bake\nrye bread?",
        "How do I make crème brûlée at home?",
        "How " + "very " * 60 + "long is this?",
    ],
)
def test_what_is_no_plain_request_is_left_out(text: str) -> None:
    assert plain_requests([text]) == []


def test_the_package_s_own_were_kept_by_the_same_rules() -> None:
    lines = Path(FILE).read_text(encoding="utf-8").splitlines()
    assert plain_requests(lines) == lines
    train, test = asked("train"), asked("test")
    assert sorted(train + test) == sorted(lines)
    assert not set(train) & set(test)
    assert 0.15 < len(test) / len(lines) < 0.25
    with pytest.raises(ValueError, match="1043 requests that the base wrote asked for"):
        asked("train", 1043)
