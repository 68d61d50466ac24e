"""Rouge-L against a longest common subsequence written here; held-out loss against Hugging Face, one row at a time."""

from __future__ import annotations

import builtins
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.behavior.reference import ResponseLoss, RougeScores, response_loss, rouge_l
from safecircuits.prompts.prompt_set import encode


def lcs(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


TEXT = st.lists(st.sampled_from(["the", "Cake", "cake,", "is", "on", "a", "lamp."]), max_size=9).map(" ".join)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_rouge_l_is_the_longest_common_subsequence(pairs: list[tuple[str, str]]) -> None:
    pytest.importorskip("rouge_score")
    got = rouge_l([a for a, _ in pairs], [b for _, b in pairs])
    for i, (text, reference) in enumerate(pairs):
        a, b = (re.findall(r"[a-z0-9]+", t.lower()) for t in (text, reference))
        common = lcs(a, b)
        precision, recall = (common / len(a), common / len(b)) if a and b else (0, 0)
        f1 = 2 * precision * recall / (precision + recall) if common else 0
        assert [float(x[i]) for x in (got.precision, got.recall, got.f1)] == pytest.approx([precision, recall, f1])


def test_rouge_l_of_a_prompt_set(tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    data = sc.PromptSet("t", ("a", "b"), ("the cake is on", "a lamp"))
    got = rouge_l(sc.Completions(data, ("the cake is on", "no")), data)
    assert got.f1.tolist() == [1, 0]
    assert got.mean[0] == 0.5
    assert RougeScores.load(got.save(tmp_path / "r")).equals(got)
    with pytest.raises(ValueError, match="1 completions and 2 references"):
        rouge_l(["x"], data)
    with pytest.raises(ValueError, match="has no responses"):
        rouge_l(["x"], sc.PromptSet("t", ("a",)))


def test_without_rouge_score_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("rouge_score"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'safecircuits\[eval\]'"):
        rouge_l(["x"], ["y"])


HELDOUT = sc.PromptSet(
    "h", ("how do i make the cake", "find a lamp", "a dog"), ("take salt", "here is the lamp on it .", "sure")
)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_response_loss_is_hugging_faces_own(
    backend: str, make_tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    hf = make_tiny_model("hf")
    nats, tokens = [], []
    for example in encode(tiny_tokenizer, HELDOUT, with_responses=True):
        ids = torch.tensor([example.ids])
        labels = ids.clone()
        labels[0, : example.response_start] = -100
        tokens.append(len(example) - example.response_start)
        with torch.no_grad():
            nats.append(float(hf(ids, labels=labels).loss) * tokens[-1])
    got = response_loss(make_tiny_model(backend), HELDOUT)
    assert got.tokens.tolist() == tokens == [3, 8, 2]
    assert got.nats.tolist() == pytest.approx(nats, rel=1e-4)
    assert got.loss == pytest.approx(sum(nats) / sum(tokens), rel=1e-4)
    assert got.perplexity == pytest.approx(math.exp(sum(nats) / sum(tokens)), rel=1e-4)
    low, high = got.interval
    assert low <= got.loss <= high
    alone = response_loss(make_tiny_model(backend), HELDOUT, max_tokens=1)
    torch.testing.assert_close(alone.nats, got.nats, rtol=1e-4, atol=1e-4)
    assert ResponseLoss.load(got.save(tmp_path / "l")).equals(got)


@given(st.lists(st.tuples(st.floats(0.1, 9), st.integers(1, 20)), min_size=2, max_size=12), st.randoms())
def test_the_order_of_the_responses_does_not_move_the_interval(rows: Any, shuffle: Any) -> None:
    def interval() -> tuple[float, float]:
        nats, tokens = zip(*rows, strict=True)
        return ResponseLoss(torch.tensor(nats, dtype=torch.float64), torch.tensor(tokens), {}).interval

    before = interval()
    shuffle.shuffle(rows)
    assert interval() == before


def test_hooks_count_and_bad_sets_do_not(tiny_bridge: Any) -> None:
    plain = response_loss(tiny_bridge, HELDOUT)
    with sc.scaled(tiny_bridge, (0, 1), 1.5):
        assert response_loss(tiny_bridge, HELDOUT).loss != plain.loss
    with pytest.raises(ValueError, match="has no responses"):
        response_loss(tiny_bridge, sc.PromptSet("h", ("a dog",)))
    with torch.no_grad():
        tiny_bridge.unembed.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss of response 0 of set 'h' is not finite"):
        response_loss(tiny_bridge, HELDOUT)
