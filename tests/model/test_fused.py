"""Bridges that compute with copies of fused matrices: masks, training, export; against plain Hugging Face models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_freeze import OPTIMIZERS, assert_trained_like, batches, train_frozen, train_reference, weights
from test_freeze_mask import tiny_gpt2, tiny_neox, tiny_phi3
from torch import nn
from transformers import AutoModelForCausalLM

from conftest import build_tiny_tokenizer, randomised
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.fused import _rows_of_pieces, copies_of_fused
from safecircuits.model.load import load_model, save_pretrained, to_hugging_face
from safecircuits.model.sites import ModelShape
from safecircuits.training import frozen, frozen_digest
from safecircuits.training.loss import logits

VOCABULARY = len(build_tiny_tokenizer())


def tiny_bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return randomised(BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))).eval()


def tiny_falcon(**changes: Any) -> Any:
    from transformers import FalconConfig, FalconForCausalLM

    settings = {"num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False, "parallel_attn": True} | changes
    return randomised(FalconForCausalLM(FalconConfig(vocab_size=VOCABULARY, hidden_size=32, **settings))).eval()


BUILDERS: dict[str, Callable[[], Any]] = {
    "neox": tiny_neox,
    "bloom": tiny_bloom,
    "falcon-multi-query": lambda: tiny_falcon(multi_query=True, new_decoder_architecture=False),
    "falcon-per-head": lambda: tiny_falcon(multi_query=False, new_decoder_architecture=False, bias=True),
    "falcon-new": lambda: tiny_falcon(multi_query=True, new_decoder_architecture=True, num_kv_heads=1),
}


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """A function that builds the same model each time."""

    def made() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return BUILDERS[request.param]()

    return made


def bridged(model: Any) -> Any:
    return load_model(model, tokenizer=build_tiny_tokenizer())


def some_units(model: Any) -> FreezeMask:
    shape = ModelShape.of(bridged(model))
    return FreezeMask.of_units({"mlp": {0: [1, 5, 40]}, "attn": {0: [0, 1]}}, shape) | FreezeMask.layers(1)


def test_what_is_trained_in_a_bridge_is_exported(build: Callable[[], Any], tmp_path: Path) -> None:
    bridge, batch = bridged(build()), batches(1, padding=0)[0]
    train_frozen(bridge, some_units(build()), OPTIMIZERS["adamw-decay"], None, batches(3, padding=0))
    assert not torch.allclose(logits(bridge, batch), logits(build(), batch), atol=1e-2)
    save_pretrained(bridge, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(reloaded, batch), logits(bridge, batch), atol=1e-4, rtol=1e-4)


def test_a_bridge_trains_like_hugging_face(build: Callable[[], Any]) -> None:
    """A bridge without padding and the plain model, both in float64, with the same mask."""
    reference, plain = build().double(), build().double()
    mask, data = some_units(plain), batches(4, padding=0)
    before = weights(reference)
    train_reference(reference, dict(reference.named_parameters()), mask, OPTIMIZERS["sgd-momentum-decay"], 1.0, data)
    bridge = bridged(plain)
    train_frozen(bridge, mask, OPTIMIZERS["sgd-momentum-decay"], 1.0, data)
    assert_trained_like(bridge, reference, before, mask, atol=1e-5)
    for name, parameter in plain.named_parameters():  # the user's own model has the trained weights, fused ones too
        assert torch.equal(parameter, dict(to_hugging_face(bridge).named_parameters())[name]), name


def test_masks_and_digests_agree_with_hugging_face(build: Callable[[], Any]) -> None:
    plain, bridge = build(), bridged(build())
    mask = some_units(plain)
    theirs, ours = mask.parameter_masks(plain), mask.parameter_masks(bridge)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    digest = frozen_digest(plain, mask)
    with frozen(bridge, mask) as handle:
        assert handle.frozen_digest == digest
        assert handle.n_trainable + handle.n_frozen == sum(p.numel() for p in plain.parameters())
    with torch.no_grad():
        bridge.blocks[0].attn.q.original_component.weight.add_(1e-3)
    assert frozen_digest(bridge, mask) != digest


def test_an_exported_model_inside_the_block_has_the_values_of_the_moment(build: Callable[[], Any]) -> None:
    bridge, batch = bridged(build()), batches(1, padding=0)[0]
    with frozen(bridge, some_units(build())) as handle:
        for parameter in handle.trainable_parameters():
            parameter.data.mul_(1.1)
        torch.testing.assert_close(logits(to_hugging_face(bridge), batch), logits(bridge, batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_phi3])
def test_views_are_no_copies(build: Callable[[], Any]) -> None:
    assert copies_of_fused(bridged(build())) == []
    assert copies_of_fused(build()) == []


def test_a_split_that_is_no_choice_of_rows_is_refused() -> None:
    fused = nn.Linear(4, 6, bias=False)

    def doubled(attention: Any) -> list[nn.Linear]:
        pieces = [nn.Linear(4, 2, bias=False) for _ in range(3)]
        for i, piece in enumerate(pieces):
            piece.weight = nn.Parameter(2 * attention.qkv.weight[2 * i : 2 * i + 2])
        return pieces

    attention = SimpleNamespace(split_qkv_matrix=doubled, submodules={"qkv": SimpleNamespace(name="qkv")})
    with pytest.raises(ValueError, match="cannot be put together again"):
        _rows_of_pieces(attention, fused)


def test_a_falcon_that_transformer_lens_cannot_split_is_one_clear_error() -> None:
    model = tiny_falcon(multi_query=True, new_decoder_architecture=True, num_kv_heads=2)
    with pytest.raises(ValueError, match="cannot make a bridge of this FalconForCausalLM"):
        bridged(model)
