"""Sets of units against chance: the common part of random sets is where the interval says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import safecircuits as sc

SHAPE = sc.ModelShape("x", 4, 16, 30, 2, 2)


def drawn(n: int, seed: int) -> sc.FreezeMask:
    order = torch.randperm(128, generator=torch.Generator().manual_seed(seed))[:n]
    flat = torch.zeros(128, dtype=torch.bool).index_fill(0, order, True)
    return sc.FreezeMask.where({"mlp": flat[:120].reshape(4, 30), "attn": flat[120:].reshape(4, 2)}, SHAPE)


def test_random_sets_lie_within_the_interval_and_equal_ones_above() -> None:
    inside, sizes = 0, []
    for seed in range(200):
        [pair] = sc.units.object_overlap({"a": drawn(40, seed), "b": drawn(30, 1000 + seed)}, SHAPE).pairs
        inside += pair.low <= pair.both <= pair.high
        sizes.append(pair.both)
    assert inside / 200 > 0.93
    assert sum(sizes) / 200 == pytest.approx(pair.expected, rel=0.05)
    [same] = sc.units.object_overlap({"a": drawn(40, 0), "b": drawn(40, 0)}, SHAPE).pairs
    assert same.both == 40
    assert same.p < 1e-10


def test_three_sets_make_three_pairs_that_are_saved_and_drawn(tmp_path: Path) -> None:
    sets = {"SCU": drawn(10, 0), "layers": sc.FreezeMask.layers((1, 2), SHAPE), "writers": drawn(12, 1)}
    found = sc.units.object_overlap(sets, SHAPE)
    assert [(p.a, p.b) for p in found.pairs] == [("SCU", "layers"), ("SCU", "writers"), ("layers", "writers")]
    assert sc.units.ObjectOverlap.load(found.save(tmp_path / "o")).equals(found)
    assert len(found.plot().get_yticks()) == len(found.to_frame()) == 3


def test_what_cannot_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="not 1"):
        sc.units.object_overlap({"a": drawn(4, 0)}, SHAPE)
    with pytest.raises(ValueError, match="has no units"):
        sc.units.object_overlap({"a": drawn(4, 0), "b": drawn(0, 0)}, SHAPE)
