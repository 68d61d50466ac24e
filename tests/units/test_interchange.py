"""Patching curves: their areas against numpy over MIB's formulas written out, and what they say of known models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc
from safecircuits.units.interchange_curves import PatchingCurve, PatchingCurves

COUNTS, N_UNITS = (1, 4, 16, 64), 128


def curves(rows: Any, base: Any, aligned: Any) -> PatchingCurves:
    """``rows``: by kind, verdicts by count and prompt, both ways."""
    made = tuple(
        PatchingCurve(direction, kind, draw, torch.tensor(verdicts))
        for direction in ("sufficient", "necessary")
        for kind, draws in rows.items()
        for draw, verdicts in enumerate(draws)
    )
    return PatchingCurves(COUNTS, N_UNITS, torch.tensor(base), torch.tensor(aligned), made, {})


@pytest.mark.parametrize("seed", range(6))
def test_areas_are_mibs_integrals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, random = rng.random((4, 6)) < rng.random((4, 1)), rng.random((2, 4, 6)) < 0.3
    base, aligned = [False] * 5 + [True], [True] * 5 + [False]
    made = curves({"found": [found.tolist()], "random": random.tolist()}, base, aligned)
    m0, m1 = np.mean(base), np.mean(aligned)
    for direction, (none, every) in {"sufficient": (m0, m1), "necessary": (m1, m0)}.items():
        f = (np.mean(found, axis=1) - none) / (every - none)
        share = np.array([0, *COUNTS]) / N_UNITS
        top = share[-1]
        want = np.trapezoid([0, *f], share) / top, np.trapezoid(np.abs(1 - np.array([0, *f])), share) / top
        log = np.trapezoid(f, np.log(COUNTS)) / math.log(64)
        d: Any = direction
        np.testing.assert_allclose((made.cpr(d), made.cmd(d)), want, atol=1e-12)
        np.testing.assert_allclose(made.cpr(d, scale="log"), log, atol=1e-12)
        g = (np.mean(random, axis=(0, 2)) - none) / (every - none)
        gap = log - np.trapezoid(g, np.log(COUNTS)) / math.log(64)
        area, low, high = made.above(d, "random")
        np.testing.assert_allclose(area, gap, atol=1e-12)
        assert low - 1e-9 <= high
        reached = [n for n, value in zip(COUNTS, f, strict=True) if value > 0.5 - 1e-9]
        assert made.half(d) == (reached[0] if reached else None)


def test_the_order_of_prompts_does_not_move_the_interval() -> None:
    rng = np.random.default_rng(0)
    found, random = rng.random((1, 4, 12)) < 0.6, rng.random((2, 4, 12)) < 0.3
    base, aligned = np.arange(12) < 2, np.arange(12) < 11
    swap = rng.permutation(12)
    one = curves({"found": found.tolist(), "random": random.tolist()}, base.tolist(), aligned.tolist())
    other = curves(
        {"found": found[..., swap].tolist(), "random": random[..., swap].tolist()},
        base[swap].tolist(),
        aligned[swap].tolist(),
    )
    np.testing.assert_allclose(one.above("sufficient", "random"), other.above("sufficient", "random"))


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return sc.load_model("base"), sc.load_model("aligned")


def held_out() -> tuple[Any, Any]:
    prompts = sc.organism.prompts("malicious", n=16)
    return prompts[:8], prompts[8:]


def test_all_units_of_an_organism_carry_its_refusal_both_ways(pair: tuple[Any, Any], tmp_path: Any) -> None:
    found_on, judged_on = held_out()
    scores = sc.units.change_scores(*pair, found_on, method="wchange")
    made = sc.units.patching_curves(*pair, scores, judged_on, counts=[1, 3136], controls=1, outgoing=True)
    assert (made.base.double().mean(), made.aligned.double().mean()) == (0.0, 1.0)
    for direction in made.directions:
        assert made.faithfulness(direction).tolist()[-1] == 1.0
        # With every unit there is nothing to draw, so that controls are what was found.
        assert made.rates(direction, "random")[-1] == made.rates(direction)[-1]
    assert type(made).load(made.save(tmp_path / "c")).equals(made)
    assert made.record()["curves"]["sufficient"]["found"]["half"] in (1, 3136)
    assert made.to_frame().shape == (2 * 3 * 2, 13)
    assert made.plot() is not None
    assert "sufficient (base with the aligned model's units)" in str(made)


def test_masks_by_number_do_as_scores_do(pair: tuple[Any, Any]) -> None:
    found_on, judged_on = held_out()
    scores = sc.units.change_scores(*pair, found_on)
    options: Any = {"controls": 0, "directions": ["necessary"]}
    one = sc.units.patching_curves(*pair, scores, judged_on, counts=[8, 64], **options)
    other = sc.units.patching_curves(*pair, {64: scores.top(64), 8: scores.top(8)}, judged_on, **options)
    assert torch.equal(one.curves[0].refused, other.curves[0].refused)
    with pytest.raises(ValueError, match="the mask of 9 units has 8"):
        sc.units.patching_curves(*pair, {9: scores.top(8)}, judged_on, **options)


def test_bad_input(pair: tuple[Any, Any]) -> None:
    found_on, judged_on = held_out()
    scores = sc.units.change_scores(*pair, found_on)
    cases: list[tuple[Any, str]] = [
        ({"malicious": judged_on.take(1)}, "one prompt"),
        ({"counts": [4, 2]}, "counts must ascend"),
        ({"counts": [4000]}, "at most the 3136 scored units"),
        ({"directions": ["both"]}, "directions are some of 'sufficient', 'necessary'"),
        ({"malicious": sc.organism.prompts("normal", n=4)}, "there is no refusal that units could carry"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            sc.units.patching_curves(*pair, scores, **{"malicious": judged_on, "counts": [8], **change})
    with pytest.raises(ValueError, match="one and the same model"):
        sc.units.patching_curves(pair[0], pair[0], scores, judged_on)
