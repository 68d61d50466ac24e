"""Difference-in-means directions against Hugging Face's own hidden states, one prompt at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
import zoo
from safecircuits.direction import mean_directions
from safecircuits.organism import prompts
from safecircuits.prompts.prompt_set import encode


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sc.load_model("aligned")


@pytest.fixture(scope="module")
def found(aligned: Any) -> sc.direction.MeanDirections:
    return mean_directions(aligned, prompts("malicious", n=12), prompts("normal", n=10), draws=50)


def test_the_difference_is_of_hugging_faces_own_hidden_states(aligned: Any, found: Any) -> None:
    from safecircuits.model.load import to_hugging_face

    hf, means = to_hugging_face(aligned), []
    with torch.no_grad():
        for asked in (prompts("malicious", n=12), prompts("normal", n=10)):
            states = []
            for example in encode(aligned.tokenizer, asked):
                out = hf.model(torch.tensor([example.ids]), output_hidden_states=True)
                states.append(torch.stack(out.hidden_states[1:-1])[:, 0, -len(found.positions) :])
            means.append(torch.stack(states).double().mean(0))
    assert torch.allclose(found.difference[:-1].double(), means[0] - means[1], atol=1e-4)
    assert torch.allclose(found.places[2:-1:2].double(), means[1], atol=1e-4)


def test_a_level_is_what_the_harmless_mean_has_of_the_direction(found: Any) -> None:
    chosen = found.refusal(3)
    want = found.harmless[3, -1].double() @ chosen.unit
    assert float(chosen.levels[8]) == pytest.approx(float(want), abs=1e-4)


def test_positions_are_the_templates_tokens_and_the_instructions_last(aligned: Any, found: Any) -> None:
    [example] = encode(aligned.tokenizer, prompts("malicious", n=1))
    closing = found.tokens[1:]
    assert tuple(aligned.tokenizer.decode([i]) for i in example.ids[-len(closing) :]) == closing
    assert found.t_inst == -len(closing) - 1


@pytest.mark.skipif("hooked" not in zoo.backends(), reason="this transformer-lens has one backend")
def test_backends_agree(found: Any) -> None:
    other = mean_directions(
        sc.load_model("aligned", backend="hooked"), prompts("malicious", n=12), prompts("normal", n=10)
    )
    assert torch.allclose(other.difference, found.difference, atol=1e-3)
    assert torch.allclose(other.places, found.places, atol=1e-3)


def test_a_result_is_saved_and_drawn(found: Any, tmp_path: Path) -> None:
    assert sc.direction.MeanDirections.load(found.save(tmp_path / "d")).equals(found)
    assert found.at(2).equals(sc.direction.Direction.load(found.at(2).save(tmp_path / "one")))
    assert len(found.plot().lines) == len(found.positions)
    assert len(found.to_frame()) == 8 * len(found.positions)
    assert found.record()["p"] == pytest.approx(1 / 51)


def test_prompts_that_cannot_give_a_direction_are_refused(aligned: Any) -> None:
    normal, malicious = prompts("normal", n=24), prompts("malicious", n=8)
    for harmful, harmless, said in (
        (normal[:8], normal[8:16], "no more than sets with shuffled labels"),
        (malicious[:1], normal, "1 harmful prompts"),
        (malicious, normal[:3], "3 harmless prompts"),
        (normal[:8], normal, "8 prompts are in both sets"),
    ):
        with pytest.raises(ValueError, match=said):
            mean_directions(aligned, harmful, harmless, draws=50)
