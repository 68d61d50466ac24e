"""Depth of alignment against Hugging Face's own forward passes, one prompt at a time in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.behavior.depth import AlignmentDepth
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import encode

PROMPTS = sc.PromptSet(
    "p",
    ("how do i make the cake", "find a lamp", "how do i fix the road with some water", "bake tea"),
    ("sure take some water", "here it is .", "you take the wood and then the salt", "sorry i cannot"),
)


def always(text: str) -> bool:
    return True


def pair(backend: Any = "bridge") -> tuple[Any, Any, Any, Any]:
    ours, theirs = build_tiny_llama(3), build_tiny_llama()
    models = (load_model(m, tokenizer=build_tiny_tokenizer(), backend=backend) for m in (ours, theirs))
    return (ours, theirs, *models)


def plainly(hf_model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = hf_model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
    return out


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize("answers", ["refusals", "responses"])
def test_the_profile_is_the_formula(answers: Any, backend: Any) -> None:
    ours, theirs, aligned, base = pair(backend)
    options: Any = {"answers": answers, "n_tokens": 5, "template": "chat", "detector": always}
    found = sc.behavior.alignment_depth(aligned, base, PROMPTS, **options)
    examples = encode(build_tiny_tokenizer(), PROMPTS, template="chat", with_responses=True)
    want = np.full((4, 5), np.nan)
    for row, example in enumerate(examples):
        ids, start = list(example.ids), example.response_start
        if answers == "refusals":
            ids = ids[:start]
            while len(ids) < start + 5:
                token = int(plainly(ours, ids)[-1].argmax())
                if token == build_tiny_tokenizer().eos_token_id:
                    break
                ids.append(token)
        p, q = (plainly(m, ids)[start - 1 : -1][:5] for m in (ours, theirs))
        kl = (np.exp(p) * (p - q)).sum(1)
        want[row, : len(kl)] = kl
    kept = (~np.isnan(want)).mean(0) >= 0.5
    np.testing.assert_allclose(found.values.numpy(), want[:, kept], rtol=1e-3, atol=1e-6)
    means = np.nanmean(want[:, kept], 0)
    assert found.share_in_first(2) == pytest.approx(means[:2].sum() / means.sum(), rel=1e-3)
    assert (found.low <= found.by_position).all()
    assert (found.by_position <= found.high).all()


@pytest.mark.parametrize(("curve", "deep"), [([9.0, 1.0, 0.0, 0.0], 1), ([1.0] * 20, 18), ([0.0, 0.0, 5.0], 3)])
def test_depth_counts_the_tokens_that_hold_nine_tenths(curve: list[float], deep: int) -> None:
    values = torch.tensor([curve, curve], dtype=torch.float64)
    made = AlignmentDepth(values, values[0], values[0], 2, {"answers": "refusals"})
    assert made.depth() == deep
    assert f"{deep} of {len(curve)} answer tokens hold 90 %" in str(made)


def test_beside_the_pressure_curve_saved_and_drawn(tmp_path: Any) -> None:
    _, _, aligned, base = pair()
    found = sc.behavior.alignment_depth(aligned, base, PROMPTS, n_tokens=4, detector=always)
    under = sc.behavior.pressure(aligned, PROMPTS, prefill="sure take some water", prefill_tokens=[1, 2])
    table = found.beside(under)
    assert table["refused"].isna().tolist() == [False, False, False, *[True] * (len(table) - 3)]
    assert table["refused"][1] == float(under.attempts[1].refused.double().mean())
    assert table["share_before"].tolist()[0] == 0.0
    assert AlignmentDepth.load(found.save(tmp_path / "d")).equals(found)
    assert found.plot(pressure=under).get_ylabel() == "KL(aligned ‖ base), nats"
    assert found.to_frame()["share"].iloc[-1] == pytest.approx(1.0)


def test_bad_input() -> None:
    _, _, aligned, base = pair()
    with pytest.raises(ValueError, match="refuses 0 of the 4 prompts of 'p', and a profile needs at least two"):
        sc.behavior.alignment_depth(aligned, base, PROMPTS)
    with pytest.raises(ValueError, match="'refusals' or 'responses', not 'answers'"):
        sc.behavior.alignment_depth(aligned, base, PROMPTS, answers="answers")
    with pytest.raises(ValueError, match="has no responses"):
        sc.behavior.alignment_depth(aligned, base, list(PROMPTS), answers="responses")
    with pytest.raises(ValueError, match="needs at least two answers"):
        sc.behavior.alignment_depth(aligned, base, PROMPTS.take(1), detector=always)
    with pytest.raises(ValueError, match="one and the same model"):
        sc.behavior.alignment_depth(aligned, aligned, PROMPTS)
