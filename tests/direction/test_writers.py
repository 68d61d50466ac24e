"""Who writes a direction, against plain Hugging Face activations and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
import zoo
from safecircuits.direction import Direction, DirectionWriters, direction_writers, mean_directions
from safecircuits.prompts.prompt_set import encode

HARMFUL = ["the cat sat", "a cat ran", "the cat slept on it", "a cat"]
HARMLESS = ["dog here now", "dog over there", "one dog barks at it", "dog dog"]
EXACT = ["Llama-3", "GPT-2", "Pythia", "Qwen3", "Gemma-1"]


def direction_in(model: Any) -> Direction:
    vector = torch.randn(zoo.D_MODEL, generator=torch.Generator().manual_seed(1))
    hidden = []
    for texts in (HARMFUL, HARMLESS):
        hidden.append(sc.collect_residuals(model, texts).at(1).mean(0))
    sign = 1 if float((hidden[0] - hidden[1]) @ vector) > 0 else -1
    return Direction(vector * sign, 1, -1, torch.empty(0), sc.ModelShape.of(model), {})


@pytest.mark.parametrize("backend", zoo.backends())
@pytest.mark.parametrize("name", EXACT)
def test_the_parts_are_each_writers_and_sum_to_the_whole(name: str, backend: str) -> None:
    model, hf, member = zoo.hooked_model(name, backend), zoo.hugging_face(name), zoo.ZOO[name]
    chosen = direction_in(model)
    found = direction_writers(model, chosen, HARMFUL, HARMLESS)
    total = float(found.neurons.sum() + found.heads.sum()) + found.embedding
    assert total == pytest.approx(1, abs=1e-3)
    seen: list[torch.Tensor] = []
    handle = member.module(hf, 1, "out").register_forward_pre_hook(lambda m, args: seen.append(args[0][0, -1]))
    with torch.no_grad():
        for example in encode(zoo.tokenizer(), [*HARMFUL, *HARMLESS]):
            hf(torch.tensor([example.ids]))
    handle.remove()
    gap = torch.stack(seen[:4]).double().mean(0) - torch.stack(seen[4:]).double().mean(0)
    want = gap * (member.weight(hf, 1, "out").double().T @ chosen.unit) / found.whole
    assert torch.allclose(found.neurons[1], want, atol=1e-4)


def test_a_norm_behind_a_sublayer_is_refused() -> None:
    model = zoo.hooked_model("Gemma-2", "bridge")
    with pytest.raises(ValueError, match="something stands between"):
        direction_writers(model, direction_in(model), HARMFUL, HARMLESS)


def test_the_top_is_a_mask_and_the_result_is_saved(tmp_path: Path) -> None:
    model = sc.load_model("aligned")
    sets = (sc.organism.prompts("malicious", n=12), sc.organism.prompts("normal", n=12))
    found = direction_writers(model, mean_directions(model, *sets, draws=40).refusal(4), *sets)
    assert DirectionWriters.load(found.save(tmp_path / "w")).equals(found)
    mask = found.top(20)
    assert mask.n_units() == 20
    assert not bool(mask.at("mlp")[5:].any())  # what is after the direction's layer cannot write it
    with sc.frozen(model, mask):
        pass
    assert (found.to_frame()["mlp_low"] <= found.to_frame()["mlp"] + 1e-9).all()
    with pytest.raises(ValueError, match="units write this direction"):
        found.top(10**6)
