"""KL to the intact model against numpy in float64 and Hugging Face's own forward, one prompt at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import safecircuits as sc
import zoo
from safecircuits.behavior.divergence import KLReference, TokenKL, kl_divergence
from safecircuits.organism import prompts
from safecircuits.prompts.prompt_set import encode

INF = float("inf")


def slow(p_logits: list[float], q_logits: list[float]) -> float:
    p, q = (np.exp(np.array(x) - max(x)) / np.exp(np.array(x) - max(x)).sum() for x in (p_logits, q_logits))
    return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-60, 60), st.floats(-60, 60)), min_size=2, max_size=9))
def test_it_is_the_sum_of_p_log_p_over_q(pairs: list[tuple[float, float]]) -> None:
    a, b = (list(column) for column in zip(*pairs, strict=True))
    found = kl_divergence(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    assert float(found) == pytest.approx(slow(a, b), abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, -INF], [0.0, -INF], 0.0),  # neither can say it
        ([0.0, -INF], [0.0, 0.0], np.log(2)),  # the changed model can, which costs what it takes from the other
        ([0.0, 0.0], [0.0, -INF], INF),  # the changed model cannot say what the intact one may
        ([0.0, -1e5], [0.0, 1e5], 1e5),  # p underflows to 0: the tail counts nothing, the head everything
    ],
)
def test_at_the_ends(a: list[float], b: list[float], want: float) -> None:
    assert float(kl_divergence(torch.tensor(a), torch.tensor(b))) == pytest.approx(want)


def test_half_precision_logits_lose_nothing_more_than_they_have_lost() -> None:
    a, b = (torch.randn(3, 40_000, generator=torch.Generator().manual_seed(k)).bfloat16() * 3 for k in range(2))
    assert torch.equal(kl_divergence(a, b), kl_divergence(a.double(), b.double()))
    assert bool((kl_divergence(a, b) > 0.1).all())
    assert torch.equal(kl_divergence(a, a), torch.zeros(3, dtype=torch.float64))


def test_what_has_no_divergence_is_an_error() -> None:
    fine = torch.zeros(2)
    for wrong in ([float("nan"), 0.0], [INF, 0.0], [-INF, -INF]):
        with pytest.raises(FloatingPointError, match="not finite"):
            kl_divergence(fine, torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"shape \[2\] and of \[3\]"):
        kl_divergence(fine, torch.zeros(3))
    with pytest.raises(ValueError, match="at least 1"):
        KLReference.of(zoo.hooked_model("Llama-3", "bridge"), ["a b"], n_tokens=0)


@pytest.mark.parametrize("backend", zoo.backends())
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_over_the_intact_models_answer_token_by_token(backend: str, n_tokens: int) -> None:
    model, asked = zoo.hooked_model("Llama-3", backend), ["the cat sat", "a b c d e"]
    hf, other = zoo.hugging_face("Llama-3"), zoo.ZOO["Llama-3"].build(seed=4)
    found = KLReference.of(model, asked, n_tokens=n_tokens).divergence(zoo.load(other, backend))
    for row, example in enumerate(encode(zoo.tokenizer(), asked)):
        ids = list(example.ids)
        for token in range(n_tokens):
            with torch.no_grad():
                p, q = (m(torch.tensor([ids])).logits[0, -1].double().tolist() for m in (hf, other))
            assert float(found.values[row, token]) == pytest.approx(slow(p, q), rel=1e-3)
            ids.append(int(np.argmax(p)))
            if ids[-1] == zoo.tokenizer().eos_token_id:
                assert bool(found.values[row, token + 1 :].isnan().all())
                break


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sc.load_model("aligned")


def test_tables_of_removals_and_of_scaling_have_it(aligned: Any, tmp_path: Any) -> None:
    sets: Any = {"malicious": prompts("malicious", n=6), "utility": prompts("utility", n=6)}
    units = {"some": sc.FreezeMask.random_units(sc.FreezeMask.of_units({"mlp": {3: range(60)}}, aligned), seed=1)}
    table = sc.ablate_units(aligned, units, controls=1, resume=tmp_path / "r.jsonl", **sets)
    names = [f"{of}_{at}_token_kl" for of in ("malicious", "harmless") for at in ("first", "per")]
    frame = table.to_frame().set_index("removed")
    assert (frame.loc[["some", "random, as many as some"], names] > 0).all(axis=None)
    again = sc.ablate_units(aligned, units, controls=1, resume=tmp_path / "r.jsonl", **sets)
    assert again.equals(table)
    assert table.record()["some"]["random"][names[0]] == frame.loc["random, as many as some", names[0]]
    with sc.ablated(aligned, units["some"]):
        changed = KLReference.of(aligned, sets["malicious"])
    with_hooks = table.rows[0].behavior.kl["malicious"]
    assert with_hooks.values.shape == (6, 8)
    assert not torch.equal(changed.log_probs[0], KLReference.of(aligned, sets["malicious"]).log_probs[0])
    one = {"mild": sc.scaled(aligned, (3, 5), 1.05), "strong": sc.scaled(aligned, (3, 5), 1.5)}
    measured = sc.units.measure_in(aligned, one, **sets)
    mild, strong = (measured[name].kl_means["harmless_first_token_kl"] for name in one)
    assert 0 < mild < strong


def test_a_result_is_saved_and_says_its_means(aligned: Any, tmp_path: Any) -> None:
    reference = KLReference.of(aligned, prompts("normal", n=5))
    with sc.scaled(aligned, (2, 4), 1.3):
        found = reference.divergence(aligned)
    assert TokenKL.load(found.save(tmp_path / "kl")).equals(found)
    assert found.record()["first_token_kl"] == pytest.approx(float(found.first.mean()))
    assert len(found.to_frame()) == 8
    assert "at the first token" in str(found)
