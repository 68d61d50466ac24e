"""Arditi et al.'s choice of a direction, written again slowly and plainly: its three scores, its filters, its order.

The plain version follows the authors' ``select_direction.py``: candidates position by position and layer by layer, a
filter that drops what is not a number, too late, too far or does not induce, and a stable sort by the bypass score.
What they call layer l is what enters block l; here it is the residual stream after layer l − 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.direction import RefusalDirection, orthogonalised, refusal_direction
from safecircuits.model.load import to_hugging_face
from safecircuits.model.modules import decoder_layers
from safecircuits.organism import prompts
from safecircuits.prompts.prompt_set import PromptSet, encode

HELD_OUT = prompts("malicious", "test", 4), prompts("normal", "test", 4)


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sc.load_model("aligned")


@pytest.fixture(scope="module")
def found(aligned: Any) -> RefusalDirection:
    seen = prompts("malicious", "train", 12), prompts("normal", "train", 12)
    return refusal_direction(aligned, *seen, held_out=HELD_OUT, controls=0)


def plain_choice(found: RefusalDirection) -> tuple[int, int] | None:
    n_layers = len(found.bypass)
    kept = []
    for column, position in enumerate(found.directions.positions):
        for entered in range(1, n_layers):  # 0 is the embeddings
            after = entered - 1
            bypass, induce, kl = (float(t[after, column]) for t in (found.bypass, found.induce, found.kl))
            if math.isnan(bypass) or math.isnan(induce) or math.isnan(kl):
                continue
            if entered >= int(n_layers * (1.0 - 0.2)) or kl > 0.1 or induce < 0.0:
                continue
            kept.append((-bypass, after, position))
    return max(kept, key=lambda one: one[0])[1:] if kept else None


values = st.floats(-20, 20, allow_nan=False) | st.just(math.nan)


@settings(max_examples=150)
@given(st.data())
def test_the_choice_is_the_authors(found: RefusalDirection, data: st.DataObject) -> None:
    shape = found.bypass.shape
    n = shape[0] * shape[1]
    bypass = data.draw(st.lists(values, min_size=n, max_size=n, unique_by=lambda v: v if v == v else object()))
    induce = data.draw(st.lists(values | st.just(0.0), min_size=n, max_size=n))
    kl = data.draw(st.lists(st.floats(0, 0.3) | st.just(0.1) | st.just(math.nan), min_size=n, max_size=n))
    scores = {
        name: torch.tensor(given, dtype=torch.float64).reshape(shape)
        for name, given in (("bypass", bypass), ("induce", induce), ("kl", kl))
    }
    made = replace(found, **scores)
    want = plain_choice(made)
    if want is None:
        with pytest.raises(ValueError, match="keeps none of the candidates"):
            made.choose("published")
    else:
        chosen = made.choose("published")
        assert (chosen.layer, chosen.position) == want


@torch.no_grad()
def last_logits(hf: Any, tokenizer: Any, asked: PromptSet) -> torch.Tensor:
    return torch.stack([hf(torch.tensor([e.ids])).logits[0, -1].double() for e in encode(tokenizer, asked)])


def plain_scores(aligned: Any, found: RefusalDirection, layer: int) -> tuple[float, float, float]:
    """Bypass and KL by edited weights, induction by adding the vector to what a block hands on; Hugging Face's own."""
    harmful, harmless = HELD_OUT
    tokens = list(found.provenance["refusal_tokens"])
    direction = found.directions.refusal(layer)
    intact, edited = to_hugging_face(aligned), to_hugging_face(orthogonalised(aligned, direction))

    def refusal(logits: torch.Tensor) -> float:
        p = logits.softmax(-1)[:, tokens].sum(-1)
        return float(((p + 1e-12).log() - (1 - p + 1e-12).log()).mean())

    bypass = refusal(last_logits(edited, aligned.tokenizer, harmful))
    before, after = (last_logits(hf, aligned.tokenizer, harmless).log_softmax(-1) for hf in (intact, edited))
    kl = float((before.exp() * (before - after)).sum(-1).mean())

    def add(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + direction.vector.to(output[0].dtype), *output[1:])
        return output + direction.vector.to(output.dtype)

    handle = decoder_layers(intact)[layer].register_forward_hook(add)
    try:
        induce = refusal(last_logits(intact, aligned.tokenizer, harmless))
    finally:
        handle.remove()
    return bypass, induce, kl


@pytest.mark.parametrize("layer", [1, 4])
def test_the_three_scores_are_the_plain_ones(aligned: Any, found: RefusalDirection, layer: int) -> None:
    got = [float(getattr(found, name)[layer, -1]) for name in ("bypass", "induce", "kl")]
    assert got == pytest.approx(list(plain_scores(aligned, found, layer)), rel=2e-3, abs=2e-2)
