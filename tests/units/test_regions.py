"""Overlap beyond chance is zero, and its p-value uniform, where regions are drawn from noise; what it is otherwise."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc

SHAPE = sc.ModelShape("Any", n_layers=6, d_model=8, d_mlp=20, n_heads=4, n_kv_heads=4)


def random_units(rng: Any, n: int = 20) -> Any:
    """The highest of scores that are noise."""
    chosen = np.zeros(6 * 24, dtype=bool)
    chosen[rng.random(6 * 24).argsort()[:n]] = True
    split = torch.tensor(chosen)
    return sc.FreezeMask(split[:120].view(6, 20), split[120:].view(6, 4), SHAPE)


def random_block(rng: Any, length: int = 2) -> Any:
    first = int(rng.integers(0, 7 - length))
    return sc.FreezeMask.layers((first, first + length - 1), SHAPE)


@pytest.mark.parametrize("kind", [random_units, random_block])
def test_noise_overlaps_by_nothing_and_its_p_values_are_calibrated(kind: Any) -> None:
    rng = np.random.default_rng(0)
    runs = 150
    found = [
        sc.units.region_overlap({str(i): kind(rng) for i in range(3)}, truth=kind(rng), draws=39, seed=run)
        for run in range(runs)
    ]
    means = np.array([one.mean for one in found])
    assert abs(means.mean()) < 3 * means.std() / np.sqrt(runs)
    for p in (np.array([one.p for one in found]), np.array([one.truth_p for one in found])):
        for level in (0.1, 0.25):  # ties of blocks make a p-value larger than uniform, never smaller
            assert (p <= level).mean() < level + 3 * np.sqrt(level * (1 - level) / runs)
        if kind is random_units:
            assert 0.35 < p.mean() < 0.65


def test_equal_regions_overlap_fully_and_the_formula_is_the_one_that_is_written() -> None:
    rng = np.random.default_rng(1)
    a, b = random_units(rng), random_units(rng)
    found = sc.units.region_overlap({"a": a, "again": a, "b": b}, truth=a, draws=99)
    assert found.corrected[0, 1] == 1.0
    expected = sum(x.sum() * y.sum() / x.numel() for x, y in ((a.mlp, b.mlp), (a.attn, b.attn)))
    want = ((a & b).n_units() - float(expected)) / (20 - float(expected))
    assert float(found.corrected[0, 2]) == pytest.approx(want)
    assert found.truth is not None
    assert found.truth[0] == 1.0
    assert found.p == pytest.approx(0.01)


def test_blocks_of_layers_are_held_against_blocks() -> None:
    """Two blocks in the middle meet by chance more often than so many single layers would."""
    pair = {name: sc.FreezeMask.layers(block, SHAPE) for name, block in {"a": (1, 3), "b": (2, 4)}.items()}
    found = sc.units.region_overlap(pair, draws=499)
    firsts = list(itertools.product(range(4), repeat=2))
    chance = np.mean([max(0, 3 - abs(i - j)) for i, j in firsts])
    assert found.sizes == (3, 3)
    assert float(found.corrected[0, 1]) == pytest.approx((2 - chance) / (3 - chance))
    as_large = np.mean([max(0, 3 - abs(i - j)) >= 2 for i, j in firsts])
    assert found.p == pytest.approx(as_large, abs=0.08)


def test_units_that_utility_needs_do_not_count() -> None:
    rng = np.random.default_rng(2)
    shared, a, b = (random_units(rng, 12) for _ in range(3))
    with_them = sc.units.region_overlap({"a": a | shared, "b": b | shared}, draws=99)
    after = sc.units.region_overlap({"a": a | shared, "b": b | shared}, without=shared, draws=99)
    assert with_them.mean > 0.3
    assert after.mean < 0.2
    assert after.sizes == ((a - shared).n_units(), (b - shared).n_units())
    with pytest.raises(ValueError, match="region 'a' is empty without those that do not count"):
        sc.units.region_overlap({"a": shared, "b": b}, without=shared)


PROMPTS = sc.PromptSet(
    "p", ("how do i make the cake", "find a lamp", "how do i fix the road with some water", "bake tea")
)


def test_settings_are_found_compared_and_judged(tiny_bridge: Any, tmp_path: Any) -> None:
    settings = {f"seed {s}": {"data": PROMPTS.take(3, seed=s)} for s in range(3)}
    calls = []

    def find(model: Any, data: Any) -> Any:
        calls.append(data)
        return sc.score_units(model, data, tokens="prompt").top(12)

    def first_half(text: str) -> bool:
        return len(text) % 2 == 0

    judged = {"all": PROMPTS}
    top = sc.score_units(tiny_bridge, PROMPTS, tokens="prompt").top(4)
    options: Any = {"utility": top, "truth": top, "judged": judged, "detector": first_half, "draws": 49}
    found = sc.units.region_stability(tiny_bridge, settings, find, max_new_tokens=6, **options)
    assert len(calls) == 3
    for i, setting in enumerate(settings.values()):
        with sc.ablated(tiny_bridge, find(tiny_bridge, **setting)):
            left = sc.refused(sc.generate(tiny_bridge, PROMPTS, max_new_tokens=6), first_half).double().mean()
        assert float(found.functional[i, 0]) == pytest.approx(float((found.intact[0] - left) / found.intact[0]))
    assert found.without_utility is not None
    assert max(found.without_utility.sizes) <= 12
    assert found.without_utility.truth is None  # which is what was taken out
    assert type(found).load(found.save(tmp_path / "s")).equals(found)
    assert "regions overlap by" in str(found)
    frame = found.to_frame()
    assert list(frame.columns[:4]) == ["found_on", "judged_on", "refused", "lost"]
    assert frame["n"].tolist() == [len(PROMPTS)] * 3
    assert frame["incoherent"].between(0, 1).all()
    assert found.tallies["all"].refuses == round(float(found.intact[0]) * len(PROMPTS))
    assert found.overlap.to_frame().shape == (3, 4)


def test_bad_input(tiny_bridge: Any) -> None:
    def find(model: Any, data: Any) -> Any:
        return sc.score_units(model, data, tokens="prompt").top(12)

    two = {"a": {"data": PROMPTS[:2]}, "b": {"data": PROMPTS[2:]}}
    cases: list[tuple[Any, str]] = [
        ({"settings": {"a": two["a"]}}, "at least two by name"),
        ({"settings": {"a": two["a"], "b": {"data": PROMPTS.take(1)}}}, "setting 'b' has one prompt as data"),
        ({"judged": {"one": PROMPTS.take(1)}}, "judged set 'one' has one prompt"),
        ({"find": lambda _, data: data}, "the region found with 'a' are given as a FreezeMask"),
        ({"judged": {"all": PROMPTS}, "detector": lambda _: False}, "refuses nothing of judged set 'all'"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            sc.units.region_stability(tiny_bridge, **{"settings": two, "find": find, "draws": 9, **change})
    with pytest.raises(ValueError, match="at least two by name"):
        sc.units.region_overlap({"a": sc.FreezeMask.layers((0, 1), SHAPE)})
