"""Scaling by hooks against weight edits and plain forward hooks on Hugging Face models, for every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from safecircuits.base.vocabulary import COMPONENTS
from safecircuits.hooks.scale import COMPONENT_SETS, scaled, substituted
from safecircuits.model.forward import logits
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode

PROMPTS = ["how do i make the cake", "find a lamp", "how do i fix the road and the house with some water", "a dog"]
ALPHA = 1.3
# Logits are of order 1. α meets the rounding elsewhere in the two computations, which float32 carries to some 1e-6.
CLOSE = {"atol": 2e-5, "rtol": 1e-5}

every_model = pytest.mark.parametrize(("name", "backend"), zoo.pairs())
cancelling = pytest.mark.parametrize(
    ("name", "backend"), [pair for pair in zoo.pairs() if zoo.ZOO[pair[0]].norm_after], ids="-".join
)


def hooked_logits(name: str, backend: str) -> Tensor:
    """Logits at the last position of the prompts, as one left-padded batch."""
    with torch.no_grad():
        return logits(zoo.hooked_model(name, backend), pad_left(encode(zoo.tokenizer(), PROMPTS)))[:, -1]


def plain_logits(hf: Any) -> Tensor:
    """The same from a plain Hugging Face model, one prompt at a time."""
    with torch.no_grad():
        return torch.stack([hf(torch.tensor([e.ids])).logits[0, -1] for e in encode(zoo.tokenizer(), PROMPTS)])


def parts(name: str) -> tuple[str, ...]:
    return tuple(c for c in COMPONENTS if c in zoo.ZOO[name].matrices)


@every_model
def test_every_matrix_alone(name: str, backend: str) -> None:
    member, hf = zoo.ZOO[name], zoo.hugging_face(name)
    before = plain_logits(hf)
    for component in parts(name):
        with member.scaled(hf, (1,), (component,), ALPHA) as changed:
            want = plain_logits(changed)
        with scaled(zoo.hooked_model(name, backend), (1, 1), ALPHA, components=[component]):
            torch.testing.assert_close(hooked_logits(name, backend), want, **CLOSE)
        assert (want - before).abs().max() > 100 * CLOSE["atol"], f"{component} must move the logits"


@every_model
@pytest.mark.parametrize("components", COMPONENT_SETS)
def test_sets_of_matrices_in_every_layer(name: str, backend: str, components: Any) -> None:
    member, hf = zoo.ZOO[name], zoo.hugging_face(name)
    chosen = tuple(c for c in COMPONENT_SETS[components] if c in member.matrices)
    with member.scaled(hf, (0, 1), chosen, ALPHA) as changed:
        want = plain_logits(changed)
    with scaled(zoo.hooked_model(name, backend), (0, 1), ALPHA, components=components):
        torch.testing.assert_close(hooked_logits(name, backend), want, **CLOSE)
    torch.testing.assert_close(hooked_logits(name, backend), plain_logits(hf), **CLOSE)


@pytest.mark.parametrize("name", [name for name, member in zoo.ZOO.items() if member.norm_after])
def test_the_naive_edit_of_a_cancelled_matrix_does_nothing(name: str) -> None:
    member, hf = zoo.ZOO[name], zoo.hugging_face(name)
    before = plain_logits(hf)
    for component in parts(name):
        naive = (plain_logits(member.edited(hf, (0, 1), (component,), ALPHA)) - before).abs().max()
        with member.scaled(hf, (0, 1), (component,), ALPHA) as changed:
            behind_the_norm = (plain_logits(changed) - before).abs().max()
        if member.cancelled(component):
            assert naive < 1e-3 * behind_the_norm, f"{component}: all that is left is the norm's epsilon"
        else:
            assert naive == behind_the_norm > 0.01, component


@every_model
def test_what_is_substituted_is_what_the_norms_cancel(name: str, backend: str) -> None:
    member, model = zoo.ZOO[name], zoo.hooked_model(name, backend)
    moved = substituted(model)
    assert set(moved) == {c for c in parts(name) if member.cancelled(c)}
    assert substituted(model, "mlp") == {c: moved[c] for c in ("in", "out") if c in moved}
    if "gate" in member.matrices:
        assert substituted(model, ["gate"]) == {}


@pytest.mark.parametrize(("name", "backend"), [p for p in zoo.pairs() if "q" in zoo.ZOO[p[0]].norm_after])
def test_query_and_key_scale_the_attention_scores(name: str, backend: str) -> None:
    model = zoo.hooked_model(name, backend)
    batch = pad_left(encode(zoo.tokenizer(), PROMPTS[:1]))
    seen: list[Tensor] = []

    def scores() -> Tensor:
        seen.clear()
        with (
            torch.no_grad(),
            model.hooks(fwd_hooks=[("blocks.0.attn.hook_attn_scores", lambda t, hook: seen.append(t))]),
        ):
            logits(model, batch)
        return seen[0]

    plain = scores()
    with scaled(model, (0, 0), ALPHA, components=["q", "k"]):
        both = scores()
    visible = plain > -1e4  # neither in the future nor outside a sliding window
    torch.testing.assert_close(both[visible], ALPHA**2 * plain[visible], atol=1e-5, rtol=1e-5)


@cancelling
def test_the_sweeps_say_what_was_moved(name: str, backend: str) -> None:
    from safecircuits.layers import localize, scaling_grid

    model = zoo.hooked_model(name, backend)
    moved = substituted(model)
    assert moved
    grid = scaling_grid(model, PROMPTS, alpha=ALPHA, max_length=1, max_new_tokens=1)
    assert grid.provenance["substituted"] == moved
    found = localize(model, PROMPTS, (0, 1), alpha=ALPHA, reach=1, max_new_tokens=1, components="attn")
    assert found.provenance["substituted"] == substituted(model, "attn")


@pytest.mark.parametrize(
    ("layers", "alpha", "components", "message"),
    [
        ((0, 2), 1.1, "all", r"\[0, 2\] is outside the model, whose layers are 0 to 1"),
        ((-1, 1), 1.1, "all", r"\[-1, 1\] is not 0 <= first <= last"),
        ((0, 1.5), 1.1, "all", r"pair of whole numbers, not \(0, 1.5\)"),
        ((0, 1), -1.0, "all", "positive, finite number, not -1.0"),
        ((0, 1), float("inf"), "all", "finite number, not inf"),
        ((0, 1), float("nan"), "all", "finite number, not nan"),
        ({0: 1.1, 1: 0.0}, None, "all", "positive, finite number, not 0.0"),
        ({2: 1.1}, None, "all", "layer 2 is outside the model"),
        ({0.5: 1.1}, None, "all", "a layer must be a whole number, not 0.5"),
        ({}, None, "all", "layers is empty"),
        ({0: 1.1}, 1.2, "all", "alpha must be left out"),
        ((0, 1), 1.1, [], "not a non-empty choice"),
        ((0, 1), 1.1, ["gate"], "GPTNeoXForCausalLM has no gate"),
    ],
)
def test_bad_input(layers: Any, alpha: Any, components: Any, message: str) -> None:
    with (
        pytest.raises(ValueError, match=message),
        scaled(zoo.hooked_model("Pythia", "bridge"), layers, alpha, components=components),
    ):
        pass
