"""The bootstrap of the gap curve against resampling by hand, and on sets whose answer is plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.base.resamples import multiplicities
from safecircuits.base.vocabulary import LayerRange
from safecircuits.hooks.collect import Residuals
from safecircuits.layers.interval import gap_interval
from safecircuits.layers.similarity import compare


def residuals(values: torch.Tensor, name: str = "p") -> Residuals:
    n_layers, n = values.shape[:2]
    return Residuals(values, tuple(range(n_layers)), sc.PromptSet(name, tuple(f"{name} {i:03}" for i in range(n))))


@pytest.fixture(scope="module")
def sets() -> tuple[Residuals, Residuals]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4, 30, 12, generator=generator) + 2
    malicious = torch.randn(4, 25, 12, generator=generator) + 2
    malicious[2:, :, :6] -= 4  # apart from layer 2 on
    return residuals(normal, "n"), residuals(malicious, "m")


def test_equals_resampling_by_hand(sets: tuple[Residuals, Residuals]) -> None:
    normal, malicious = sets
    draws = 5
    generator = torch.Generator().manual_seed(3)
    weights = [multiplicities(len(r.prompts), draws, generator).long().numpy() for r in sets]

    def angle(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.degrees(np.arccos(np.clip(x @ y / np.linalg.norm(x) / np.linalg.norm(y), -1, 1))))

    gaps = np.zeros((draws, 4))
    for draw in range(draws):
        i, j = (np.repeat(np.arange(w.shape[1]), w[draw]) for w in weights)
        for layer in range(4):
            a, b = normal.values[layer].double().numpy(), malicious.values[layer].double().numpy()
            nn = [angle(a[p], a[q]) for x, p in enumerate(i) for y, q in enumerate(i) if x != y and p != q]
            nm = [angle(a[p], b[q]) for p in i for q in j]
            gaps[draw, layer] = np.mean(nm) - np.mean(nn)
    got = gap_interval(normal, malicious, draws=draws, seed=3)
    np.testing.assert_allclose(got.low.numpy(), np.quantile(gaps, 0.025, axis=0), atol=1e-6)
    np.testing.assert_allclose(got.high.numpy(), np.quantile(gaps, 0.975, axis=0), atol=1e-6)


def test_the_interval_holds_the_curve_and_the_onset_is_stable(sets: tuple[Residuals, Residuals]) -> None:
    got, gap = gap_interval(*sets, draws=400), compare(*sets)
    assert torch.all(got.low < gap.gap_deg)
    assert torch.all(gap.gap_deg < got.high)
    shares = got.resampled.shares
    assert max(shares, key=lambda layers: shares[layers]) == LayerRange(2, 2)
    assert sum(shares.values()) == pytest.approx(1)
    assert gap_interval(*sets, draws=400).equals(got)


@settings(max_examples=20)
@given(st.permutations(range(30)), st.permutations(range(25)))
def test_the_order_of_the_prompts_changes_nothing(
    sets: tuple[Residuals, Residuals], first: list[int], second: list[int]
) -> None:
    moved = [
        Residuals(r.values[:, order], r.layers, sc.PromptSet("p", [r.prompts.prompts[i] for i in order]))
        for r, order in zip(sets, (first, second), strict=True)
    ]
    assert gap_interval(*moved, draws=20).equals(gap_interval(*sets, draws=20))


def test_more_prompts_narrow_it() -> None:
    generator = torch.Generator().manual_seed(1)
    widths = []
    for n in (10, 160):
        a, b = (residuals(torch.randn(1, n, 8, generator=generator) + shift) for shift in (1.0, 0.5))
        got = gap_interval(a, b, draws=300)
        widths.append(float(got.high[0] - got.low[0]))
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("formula", ["paper", "code"])
def test_both_formulas_hold_their_own_curve(formula: Any, sets: tuple[Residuals, Residuals]) -> None:
    got, gap = gap_interval(*sets, draws=400, formula=formula), compare(*sets, formula=formula)
    assert torch.all((got.low < gap.gap_deg) & (gap.gap_deg < got.high))
    other = gap_interval(*sets, draws=400, formula="code" if formula == "paper" else "paper")
    assert not torch.equal(got.low, other.low)


def test_it_survives_the_disk(sets: tuple[Residuals, Residuals], tmp_path: Any) -> None:
    got = gap_interval(*sets, draws=20)
    assert sc.layers.GapInterval.load(got.save(tmp_path / "i")).equals(got)


def test_bad_input(sets: tuple[Residuals, Residuals]) -> None:
    with pytest.raises(ValueError, match="draws must be at least 1, not 0"):
        gap_interval(*sets, draws=0)
    with pytest.raises(ValueError, match="has one prompt"):
        gap_interval(residuals(torch.ones(1, 1, 3)), sets[1])
