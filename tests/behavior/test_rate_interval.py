"""Intervals of rates over a few seeds: within 0 to 100 %, and as often right as they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from safecircuits.base.stats import mean_interval, rate_interval
from safecircuits.behavior.harm import Harmfulness
from safecircuits.behavior.measured import Behavior
from safecircuits.studies.outcome import FinetuningStudy, StudyRun
from safecircuits.units.ablation import Ablation

THREE = [1.0, 0.5, 0.204]
"""Refusal over three seeds, whose Student interval is 56.8 % and beyond both ends."""


def test_three_seeds_that_spread_widely() -> None:
    plain = mean_interval(torch.tensor(THREE))
    assert plain[1] < 0
    assert plain[2] > 1
    mean, low, high = rate_interval(torch.tensor(THREE))
    assert mean == pytest.approx(plain[0])
    assert 0 < low < mean < high < 1


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_it_never_leaves_the_range_and_holds_the_mean(values: list[float]) -> None:
    mean, low, high = rate_interval(torch.tensor(values, dtype=torch.float64))
    assert 0 <= low <= mean <= high <= 1
    again = rate_interval(1 - torch.tensor(values, dtype=torch.float64))
    assert again == pytest.approx((1 - mean, 1 - high, 1 - low), abs=1e-6)
    marks = rate_interval(1 + 4 * torch.tensor(values, dtype=torch.float64), within=(1, 5))
    assert marks == pytest.approx((1 + 4 * mean, 1 + 4 * low, 1 + 4 * high), abs=1e-6)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("concentration", [5, 50, 1000])
def test_coverage(seeds: int, rate: float, concentration: int) -> None:
    """Seeds have rates of their own (beta), of each of which 100 prompts are counted."""
    rng = np.random.default_rng(0)
    own = rng.beta(rate * concentration, (1 - rate) * concentration, (600, seeds))
    counted = torch.from_numpy(rng.binomial(100, own) / 100)
    covered = np.mean([low <= rate <= high for _, low, high in map(rate_interval, counted)])
    half = t.ppf(0.975, seeds - 1) * counted.std(1) / seeds**0.5
    student = float(((counted.mean(1) - rate).abs() <= half).double().mean())
    assert covered >= student - 0.01, "no worse than Student's interval cut off at 0 and 1"
    if concentration >= 50 or rate < 0.95:
        assert covered >= 0.92


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_runs_that_agree_leave_open_what_they_cannot_tell(runs: int) -> None:
    zeros, ones = torch.zeros(runs), torch.ones(runs)
    exact = binomtest(0, runs).proportion_ci(method="exact")
    assert rate_interval(zeros) == pytest.approx((0, 0, exact.high))
    assert rate_interval(ones) == pytest.approx((1, 1 - exact.high, 1))
    low, high = rate_interval(torch.full((runs,), 0.3))[1:]
    assert 0 < low < 0.3 < high < 1
    pooled = binomtest(0, 200 * runs).proportion_ci(method="exact")
    assert rate_interval(zeros, trials=200) == pytest.approx((0, 0, pooled.high))
    assert rate_interval(ones, trials=200)[1] == pytest.approx(1 - pooled.high)


def test_no_distribution_of_rates_breaks_the_interval_of_runs_that_agree() -> None:
    """Worst case: all prompts refused in some runs, none in the others."""
    for share in (0.2, 0.5, 0.69, 0.71):
        all_zero = (1 - share) ** 3
        high = rate_interval(torch.zeros(3))[2]
        assert all_zero <= 0.025 + 1e-9 or share <= high


@given(st.integers(2, 6), st.integers(1, 50), st.data())
def test_it_holds_what_counting_leaves_open(runs: int, trials: int, data: Any) -> None:
    hits = data.draw(st.lists(st.integers(0, trials), min_size=runs, max_size=runs))
    exact = binomtest(sum(hits), runs * trials).proportion_ci(method="exact")
    _, low, high = rate_interval(torch.tensor(hits, dtype=torch.float64) / trials, trials=trials)
    assert 0 <= low <= exact.low + 1e-9
    assert exact.high - 1e-9 <= high <= 1


def test_a_single_run_has_no_interval() -> None:
    assert all(np.isnan(rate_interval(torch.tensor([0.4]))[1:]))


def test_differences_of_rates_end_at_one() -> None:
    mean, low, high = mean_interval(torch.tensor([0.9, -0.9, 0.8]), within=(-1, 1))
    assert (low, high) == (-1, 1)
    assert mean == pytest.approx(0.8 / 3)


def run(seed: int, refused: float) -> StudyRun:
    figures = {"malicious_refused": refused, "task_loss": 0.01 * (seed + 1), "bleu": 40.0}
    return StudyRun("full", "task", seed, figures, figures, (), 0, 1, 0, 0, 0, 0, 0, 0, None, None)


def test_a_study_keeps_its_rates_within_and_leaves_other_figures_alone() -> None:
    study = FinetuningStudy(tuple(run(i, rate) for i, rate in enumerate(THREE)), {}, {}, {})
    row = study.summary().iloc[0]
    assert 0 < row["malicious_refused_low"] < row["malicious_refused"] < row["malicious_refused_high"] < 1
    assert row["task_loss_low"] < 0  # a loss is no rate: its interval is Student's
    assert row["bleu"] == 40


def test_controls_and_marks() -> None:
    draws = tuple(Behavior(torch.arange(10) < n, None, None) for n in (10, 5, 2))
    mean, low, high = Ablation("SCU", 3, draws[0], draws).control_interval("malicious_refused")
    assert 0 <= low < mean < high <= 1
    marks: Any = Harmfulness(("a",) * 3, ("b",) * 3, torch.tensor([1.0, 1.0, 5.0]), ("",) * 3, "r", "j")
    assert 1 <= marks.mean[1] < marks.mean[2] <= 5


def test_a_value_that_is_no_rate() -> None:
    with pytest.raises(ValueError, match=r"a rate lies between 0 and 1, not at 1\.5"):
        rate_interval(torch.tensor([0.2, 1.5]))
