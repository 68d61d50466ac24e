"""Paired counts against scipy, against every outcome there is, and against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from safecircuits.base import paired
from safecircuits.base.paired import LEVEL, chosen_p, paired_difference, paired_p, rivals


def verdicts(up: int, down: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two configurations that differ in ``up`` prompts one way and in ``down`` the other."""
    place = torch.arange(n)
    return place < up, (place >= up) & (place < up + down)


@pytest.mark.parametrize(("up", "down"), [(4, 0), (5, 0), (6, 0), (7, 1), (8, 1), (10, 22), (50, 20), (0, 9)])
def test_the_p_value_is_the_binomial_tests(up: int, down: int) -> None:
    assert paired_p(*verdicts(up, down, 300)) == pytest.approx(binomtest(up, up + down, 0.5).pvalue)


def test_four_flips_of_300_are_within_noise() -> None:
    assert paired_p(*verdicts(4, 0, 300)) == 0.125
    low, high = paired_difference(*verdicts(4, 0, 300))[1:]
    assert low < 0 < high
    assert paired_p(*verdicts(0, 0, 300)) == 1


def test_interval_and_test_say_the_same_of_every_outcome() -> None:
    n = 14
    for up in range(n + 1):
        for down in range(n + 1 - up):
            mean, low, high = paired_difference(*verdicts(up, down, n))
            assert mean == (up - down) / n
            assert -1 <= low <= mean <= high <= 1
            assert (low <= 0 <= high) == (paired_p(*verdicts(up, down, n)) >= LEVEL), (up, down)
            assert paired_difference(*verdicts(down, up, n))[1:] == pytest.approx((-high, -low), abs=1e-5)


@pytest.mark.parametrize("shares", [(0.02, 0.02), (0.1, 0.1), (0.3, 0.1), (0.5, 0.5), (0.9, 0.02)])
def test_the_interval_covers_in_95_percent_of_all_outcomes(shares: tuple[float, float]) -> None:
    n, (up_share, down_share), covered = 25, shares, 0.0
    for up in range(n + 1):
        for down in range(n + 1 - up):
            chance = multinomial.pmf([up, down, n - up - down], n, [up_share, down_share, 1 - up_share - down_share])
            if chance > 1e-5:
                _, low, high = paired_difference(*verdicts(up, down, n))
                covered += chance * (low <= up_share - down_share <= high)
    assert covered >= 0.95


def test_one_candidate_needs_no_correction_and_copies_cost_nothing() -> None:
    block, baseline = verdicts(9, 1, 40)
    alone = chosen_p(0, block[None], baseline)
    assert alone == paired_p(block, baseline)
    assert chosen_p(0, block.expand(20, -1), baseline) == pytest.approx(alone, abs=0.01)


def test_the_correction_is_that_of_flipping_signs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "DRAWS", 3999)
    rng = np.random.default_rng(3)
    baseline = torch.from_numpy(rng.random(9) < 0.4)
    blocks = torch.from_numpy(rng.random((3, 9)) < 0.6)
    difference = blocks.int().numpy() - baseline.int().numpy()

    def smallest(signs: np.ndarray) -> float:
        found = []
        for row in difference * signs:
            up, down = int((row > 0).sum()), int((row < 0).sum())
            found.append(binomtest(up, up + down, 0.5).pvalue if up + down else 1.0)
        return min(found)

    every = [smallest(np.array([1 if k >> i & 1 else -1 for i in range(9)])) for k in range(2**9)]
    for chosen in range(3):
        plain = paired_p(blocks[chosen], baseline)
        exact = np.mean(np.array(every) <= plain + 1e-12)
        assert chosen_p(chosen, blocks, baseline) == pytest.approx(exact, abs=0.03)
        assert chosen_p(chosen, blocks, baseline) >= plain


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.permutations(range(30)))
def test_the_order_of_the_prompts_changes_nothing(seed: int, order: list[int]) -> None:
    drawn = torch.rand(6, 30, generator=torch.Generator().manual_seed(seed)) < 0.4
    best = int(drawn[1:].sum(1).argmax())
    assert chosen_p(best, drawn[1:], drawn[0]) == chosen_p(best, drawn[1:, order], drawn[0, order])
    assert rivals(best, drawn[1:]) == rivals(best, drawn[1:, order])
    assert paired_difference(drawn[0], drawn[1]) == paired_difference(drawn[0, order], drawn[1, order])


def test_rivals_of_a_plain_case() -> None:
    place = torch.arange(200)
    blocks = torch.stack([place < count for count in (90, 120, 119, 40)])
    assert rivals(1, blocks) == (2,)


@pytest.mark.parametrize("pair", [(torch.ones(3).bool(), torch.ones(4).bool()), (torch.ones(0).bool(),) * 2])
def test_bad_input(pair: Any) -> None:
    with pytest.raises(ValueError, match="paired counts are of the same prompts, at least one"):
        paired_p(*pair)
