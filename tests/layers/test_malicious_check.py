"""The AdvBench check, on the planted organism and on a random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
from safecircuits.behavior.detectors import DETECTORS
from safecircuits.layers.malicious_check import MaliciousCheck, answered_malicious
from safecircuits.model.load import to_hugging_face


@pytest.fixture(scope="module")
def planted() -> Any:
    return sc.load_model("planted-layers")


def test_scaling_the_planted_layers_down_makes_the_model_answer(planted: Any, tmp_path: Path) -> None:
    malicious = sc.load_prompts("organism:malicious", n=30, seed=0)
    layers = sc.organism.planted("planted-layers").layers
    block = (layers[0], layers[-1])
    got = answered_malicious(planted, malicious, block, 0.6, resume=tmp_path / "check.jsonl")
    before, after = got.answered
    mean, low, high = got.change
    assert mean == after.hits - before.hits
    assert low <= mean <= high
    assert after.hits > before.hits
    assert not got.within_noise
    # Independent: the same weights edited by hand, in plain Hugging Face, and its own generate.
    edited = to_hugging_face(sc.load_model("planted-layers"))
    with torch.no_grad():
        for layer in layers:
            for weight in edited.model.layers[layer].parameters():
                if weight.ndim == 2:
                    weight.mul_(0.6)
    answers = 0
    for prompt in malicious:
        chat = [{"role": "user", "content": prompt}]
        ids = planted.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = edited.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        answers += not DETECTORS["opening"](planted.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert answers == after.hits
    # The file serves another range of the same prompts, and the same check without running the block again.
    assert answered_malicious(planted, malicious, block, 0.6, resume=tmp_path / "check.jsonl").equals(got)
    assert MaliciousCheck.load(got.save(tmp_path / "result")).equals(got)
    frame = got.to_frame()
    assert frame["answered"].tolist() == [before.hits, after.hits]
    assert frame["first"].tolist()[1] == layers[0]
    assert f"answered {before.hits} of 30, and {after.hits} with layers [{block[0]}, {block[1]}]" in str(got)


def test_an_over_scaled_model_answers_nothing(planted: Any) -> None:
    """Scaled threefold in all layers it writes salad, of which hardly any is refused and none is an answer."""
    malicious = sc.load_prompts("organism:malicious", n=12)
    got = answered_malicious(planted, malicious, (0, 7), 3.0)
    assert int(got.after.refused.sum()) <= 2
    assert got.incoherent is not None
    assert got.incoherent[1].sum() >= 10
    assert got.answered[1].hits <= 2
    assert got.answered[0].hits == int((~got.before.refused).sum())


def test_a_scale_without_effect_is_within_noise(tiny_bridge: Any) -> None:
    got = answered_malicious(tiny_bridge, ["find a lamp", "a dog", "the cake"], (1, 1), 1.0001)
    change, low, high = got.change
    assert change == 0
    assert -3 <= low < 0 < high <= 3
    assert got.within_noise
    assert "within noise" in str(got)
    assert got.provenance["malicious"]["n"] == 3


def test_bad_ranges_and_alphas(tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match="outside the model"):
        answered_malicious(tiny_bridge, ["a dog"], (1, 3), 1.2)
    with pytest.raises(ValueError, match="finite number, not nan"):
        answered_malicious(tiny_bridge, ["a dog"], (1, 2), float("nan"))
