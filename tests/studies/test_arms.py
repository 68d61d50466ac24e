"""The arms of a fine-tuning study: what each of them freezes, counted against the model's own parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safecircuits.base.vocabulary import LayerRange
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.arms import (
    after_block,
    before_block,
    elsewhere,
    full,
    nfft,
    other_block,
    other_layers,
    paper_arms,
    partial_block,
    random_units,
    sppft,
)

SHAPE = ModelShape("LlamaForCausalLM", n_layers=12, d_model=8, d_mlp=16, n_heads=4, n_kv_heads=2)


def layers_of(mask: FreezeMask | None) -> tuple[int, ...]:
    assert mask is not None
    return mask.whole_layers


def test_layer_arms_freeze_the_layers_that_they_name() -> None:
    block = (6, 9)
    assert full().mask_for(SHAPE, 0) is None
    assert layers_of(sppft(block).mask_for(SHAPE, 0)) == (6, 7, 8, 9)
    assert layers_of(before_block(block).mask_for(SHAPE, 0)) == (0, 1, 2, 3, 4, 5)
    assert layers_of(after_block(block, 12).mask_for(SHAPE, 0)) == (10, 11)
    assert layers_of(partial_block(block).mask_for(SHAPE, 0)) == (6, 7)


@given(first=st.integers(0, 11), size=st.integers(1, 11), seed=st.integers(0, 20))
def test_another_block_is_contiguous_of_equal_size_and_as_far_as_it_can_be(first: int, size: int, seed: int) -> None:
    block = LayerRange(first, min(11, first + size - 1))
    if len(block) == 12:
        return
    drawn = layers_of(elsewhere(block, SHAPE, seed).on(SHAPE))
    assert len(drawn) == len(block)
    assert drawn == tuple(range(drawn[0], drawn[0] + len(block)))
    assert drawn != tuple(block.indices)
    possible = [set(range(a, a + len(block))) for a in range(12 - len(block) + 1) if a != block.first]
    assert len(set(drawn) & set(block.indices)) == min(len(other & set(block.indices)) for other in possible)
    assert elsewhere(block, SHAPE, seed) == elsewhere(block, SHAPE, seed)


@given(first=st.integers(0, 11), size=st.integers(1, 11), seed=st.integers(0, 20))
def test_other_layers_lie_outside_the_block(first: int, size: int, seed: int) -> None:
    block = LayerRange(first, min(11, first + size - 1))
    drawn = set(other_layers(block, SHAPE, seed).whole_layers)
    assert not drawn & set(block.indices)
    assert len(drawn) == min(len(block), 12 - len(block))


def test_drawn_arms_depend_on_the_seed() -> None:
    for arm in (other_block((3, 4)), random_units((3, 4))):
        drawn = [arm.mask_for(SHAPE, seed) for seed in range(6)]
        assert len(set(drawn)) > 1
        assert drawn[0] == arm.mask_for(SHAPE, 0)


def test_nfft_freezes_the_highest_units_in_the_proportion_of_the_block(
    make_tiny_model: Callable[..., Any],
) -> None:
    model = make_tiny_model("bridge")
    shape = ModelShape.of(model)
    generator = torch.Generator().manual_seed(3)
    scores = {
        "mlp": torch.rand(shape.n_layers, shape.d_mlp, generator=generator),
        "attn": torch.rand(shape.n_layers, shape.n_heads, generator=generator),
    }
    mask = nfft(scores, (1, 1), shape).mask
    assert mask is not None
    assert (mask.n_units("mlp"), mask.n_units("attn")) == (shape.d_mlp, shape.n_heads)
    assert scores["mlp"][mask.mlp].min() > scores["mlp"][~mask.mlp].max()
    assert scores["attn"][mask.attn].min() > scores["attn"][~mask.attn].max()
    # All matrices of MLP and Q/O are shared out evenly; only a key/value head can be missed, when its query heads part.
    block = FreezeMask.layers((1, 1)).share_of_parameters(model)
    assert 0.7 * block < mask.share_of_parameters(model) <= block


def test_paper_arms_are_those_that_the_block_allows() -> None:
    alignment = PromptSet("refusals", ("a",), ("no",))
    scores = {"mlp": torch.rand(12, 16), "attn": torch.rand(12, 4)}
    names = [arm.name for arm in paper_arms((3, 5), SHAPE, scores=scores, alignment=alignment)]
    assert names == [
        "full",
        "sppft",
        "before",
        "after",
        "partial",
        "other_block",
        "random_units",
        "nfft",
        "lisa",
    ]
    assert [arm.name for arm in paper_arms((0, 0), SHAPE)] == ["full", "sppft", "after", "other_block", "random_units"]
    assert [arm.name for arm in paper_arms((0, 11), SHAPE)] == ["full", "sppft", "partial"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: before_block((0, 2)), "before the block"),
        (lambda: after_block((3, 11), 12), "after the block"),
        (lambda: after_block((3, 12), 12), "outside the model"),
        (lambda: partial_block((3, 3)), "no part"),
        (lambda: elsewhere(LayerRange(0, 11), SHAPE, 0), "whole model"),
        (lambda: nfft({"mlp": torch.rand(12, 16)}, (0, 1), SHAPE), "attn scores"),
        (lambda: nfft({"mlp": torch.rand(3, 16), "attn": torch.rand(12, 4)}, (0, 1), SHAPE), "mlp scores"),
    ],
)
def test_bad_blocks_and_scores_are_named(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
