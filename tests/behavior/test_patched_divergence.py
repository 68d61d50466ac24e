"""KL of patched models to themselves without, against Hugging Face's passes one answer at a time, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_lockstep import PROMPTS, SETS, moved, reading

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.behavior.divergence import KLReference
from safecircuits.behavior.interchange import patched_divergences
from safecircuits.model.load import load_model

N_TOKENS = 5


def log_softmax(logits: torch.Tensor) -> Any:
    x = logits.double().numpy()
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("outgoing", [False, True])
@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_they_are_those_of_two_models_that_read_each_answer_alone(backend: Any, outgoing: bool) -> None:
    tokenizer = build_tiny_tokenizer()
    target, source = build_tiny_llama(), build_tiny_llama(7)
    model, other = (load_model(m, tokenizer=tokenizer, backend=backend) for m in (target, source))
    reference = KLReference.of(model, PROMPTS, n_tokens=N_TOKENS, template="chat")
    sets = {name: sc.FreezeMask.of_units(units, model) for name, units in SETS.items()}
    got = patched_divergences(model, other, reference, sets, outgoing=outgoing)
    lengths = {len(example) - example.response_start for example in reference.examples}
    assert max(lengths) > 0  # there is something to read along
    for name, units in SETS.items():
        for row, example in enumerate(reference.examples):
            first = example.response_start - 1
            with torch.no_grad():
                intact = log_softmax(target(torch.tensor([example.ids])).logits[0, first:])
                with reading(target, source, units, outgoing=outgoing):
                    source(torch.tensor([example.ids]))
                    changed = log_softmax(target(torch.tensor([example.ids])).logits[0, first:])
            want = (np.exp(intact) * (intact - changed)).sum(-1)
            found = got[name].values[row]
            np.testing.assert_allclose(found[: len(want)], want, atol=2e-5, err_msg=name)
            assert bool(found[len(want) :].isnan().all())
    assert float(got["none"].values.nan_to_num().abs().max()) < 1e-6
    assert float(got["all"].first.max()) > 1e-3


def test_a_model_with_every_unit_of_another_is_as_far_as_that_one() -> None:
    """Where two checkpoints differ in front of the units alone, patching all of them is the other checkpoint."""
    tokenizer = build_tiny_tokenizer()
    target, source = build_tiny_llama(), moved("q_proj|gate_proj|layernorm")
    model, other = (load_model(m, tokenizer=tokenizer) for m in (target, source))
    reference = KLReference.of(model, PROMPTS, n_tokens=N_TOKENS)
    every = sc.FreezeMask.layers((0, 2), model)
    patched = patched_divergences(model, other, reference, {"all": every})["all"]
    torch.testing.assert_close(patched.values, reference.divergence(other).values, atol=2e-5, rtol=0, equal_nan=True)


def test_patching_curves_have_them_beside_each_count(tmp_path: Any) -> None:
    base, aligned = sc.load_model("base"), sc.load_model("aligned")
    prompts, normal = sc.organism.prompts("malicious", n=12), sc.organism.prompts("normal", n=4)
    units = {64: sc.units.change_scores(base, aligned, prompts[:8]).top(64)}
    options: Any = {"controls": 1, "directions": ["necessary"], "outgoing": True, "kl_tokens": 3}
    found = sc.units.patching_curves(base, aligned, units, prompts[8:], harmless=normal, **options)
    curve = next(c for c in found.curves if c.chosen == "found")
    reference = KLReference.of(aligned, normal, n_tokens=3)
    want = patched_divergences(aligned, base, reference, units, outgoing=True)[64]
    # Not to the bit: the curve patches found and random units in one batch, whose size decides how some CPUs round.
    torch.testing.assert_close(curve.kl[0]["harmless"].values, want.values, rtol=1e-4, atol=1e-8, equal_nan=True)
    frame = found.to_frame().set_index("units")
    assert frame.loc["found", "harmless_first_token_kl"] == pytest.approx(float(want.first.mean()), rel=1e-4)
    assert set(found.record()["curves"]["necessary"]["random"]["kl"][0]) == {
        f"{of}_{name}_kl" for of in ("malicious", "harmless") for name in ("first_token", "per_token")
    }
    assert type(found).load(found.save(tmp_path / "c")).equals(found)
    without = sc.units.patching_curves(base, aligned, units, prompts[8:], **{**options, "kl_tokens": 0})
    assert without.curves[0].kl == ()
    assert without.kl("necessary") == []
    assert "harmless_first_token_kl" not in without.to_frame()
