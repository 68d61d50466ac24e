"""Intervals that figures draw, against plain re-computations and simulations of what they say they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from safecircuits.base.stats import rate_interval
from safecircuits.cli.canvas import axis
from safecircuits.direction.means import directions_of
from safecircuits.model.sites import ModelShape
from safecircuits.plots.attack import plot_fronts, plot_within
from safecircuits.plots.finetuning import plot_study
from safecircuits.plots.refusal_direction import plot_bypass, plot_lengths
from safecircuits.plots.scores import plot_stability
from safecircuits.units.resampling import Stability
from safecircuits.weights.matrix_overlap import MatrixOverlap, _jaccard_by_chance, _space_by_chance

SHAPE = ModelShape("LlamaForCausalLM", 2, 8, 3, 1, 1)


def states(n: int, m: int, seed: int) -> Any:
    """Residual streams of two kinds of prompts in 24 dimensions, which differ in the first."""
    drawn = np.random.default_rng(seed).normal(size=(2, 1, n + m, 24))
    drawn[:, :, :n, 0] += 2
    values = torch.tensor(drawn).float()
    a, b = values[:, :, :n].double(), values[:, :, n:].double()
    return SimpleNamespace(
        values=values, n_harmful=n, difference=lambda: a.mean(2) - b.mean(2),
        places=torch.zeros(4, 1, 24), positions=(-1,), tokens=("x",), shape=SHAPE, provenance={},
    )  # fmt: skip


def test_the_length_of_a_difference_has_the_error_of_its_prompts() -> None:
    found = directions_of(states(40, 30, 0), draws=2000)
    assert found.interval is not None
    for layer in range(2):
        difference = found.difference[layer, 0].double().numpy()
        unit = difference / np.linalg.norm(difference)
        along = states(40, 30, 0).values[layer, 0].double().numpy() @ unit
        error = (along[:40].var(ddof=0) / 40 + along[40:].var(ddof=0) / 30) ** 0.5
        low, high = found.interval[layer, 0].tolist()
        length = float(np.linalg.norm(difference))
        assert (low + high) / 2 == pytest.approx(length, abs=0.15 * error)  # lengths of resamples would be longer
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_figures_of_directions_draw_what_their_records_have() -> None:
    found = directions_of(states(20, 20, 1), draws=50)
    for record, bands in ((found.record(), 2), ({k: v for k, v in found.record().items() if k != "interval"}, 1)):
        assert len(plot_lengths(record, ax=axis()).collections) == bands  # one is chance
    ends = np.array([[[0.5, 1.5]], [[-0.5, 0.5]]])
    bypass = {
        "positions": (-1,), "tokens": ("x",), "bypass": np.array([[1.0], [0.0]]), "baseline": {"harmful": 2.0},
        "layer": None, "bypass_interval": ends,
    }  # fmt: skip
    (band,) = plot_bypass(bypass, ax=axis()).collections
    assert set(band.get_paths()[0].vertices[:, 1]) == {0.5, 1.5, -0.5}
    assert not plot_bypass(bypass | {"bypass_interval": ()}, ax=axis()).collections


@pytest.mark.parametrize(("within", "share"), [("matrix", 0.05), ("row", 0.1), ("row", 0.5)])
def test_chance_of_weights_is_where_random_choices_meet(within: Any, share: float) -> None:
    rng, rows, columns = np.random.default_rng(0), 30, 40
    one = np.zeros((rows, columns), bool)
    if within == "row":
        one[:, : round(share * columns)] = True
    else:
        one.flat[: round(share * one.size)] = True
    drawn = []
    for _ in range(1000):
        other = rng.permuted(one, axis=1) if within == "row" else rng.permutation(one.ravel()).reshape(one.shape)
        drawn.append((one & other).sum() / (one | other).sum())
    low, high = _jaccard_by_chance(torch.tensor(one), within)
    inside = np.mean([(low <= value) & (value <= high) for value in drawn])
    assert 0.93 <= inside <= 0.995  # what is counted in steps holds more than asked


@pytest.mark.parametrize(("rank", "out"), [(4, 32), (20, 32), (1, 32)])
def test_chance_of_spaces_is_where_random_ones_meet(rank: int, out: int) -> None:
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(1000):
        a, b = (np.linalg.qr(rng.normal(size=(out, rank)))[0] for _ in range(2))
        drawn.append(float(((a.T @ b) ** 2).sum()) / rank)
    low, high = _space_by_chance(rank, out)
    assert 0.92 <= np.mean([(low <= value) & (value <= high) for value in drawn]) <= 0.97
    assert _space_by_chance(out, out) == (1.0, 1.0)


def test_overlap_by_matrix_draws_chance_as_a_band() -> None:
    values = {f"{layer}.{component}": 0.2 for layer in (0, 1) for component in ("q", "out")}
    ends = {**dict.fromkeys(values, (0.08, 0.12)), "1.q": (0.05, 0.3)}
    found = MatrixOverlap(values, dict.fromkeys(values, 0.1), "jaccard", SHAPE, {}, ends)
    (band,) = found.plot(ax=axis()).collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.05, 0.3)
    assert not MatrixOverlap(values, dict.fromkeys(values, 0.1), "jaccard", SHAPE, {}).plot(ax=axis()).collections


def test_stability_leaves_out_each_calibration_set_in_turn() -> None:
    from scipy.stats import t

    rng, n = np.random.default_rng(1), 5
    half = rng.uniform(0.3, 0.6, size=(n, n))
    values = (half + half.T) / 2
    np.fill_diagonal(values, 1.0)
    found = Stability(tuple("abcde"), {"SCU": torch.tensor(values)}, {"SCU": 0.05}, torch.tensor(values), {})

    def mean(of: list[int]) -> float:
        return float(np.mean([values[i, j] for i in of for j in of if i < j]))

    everything = list(range(n))
    pseudo = [n * mean(everything) - (n - 1) * mean([i for i in everything if i != left]) for left in everything]
    half_width = t.ppf(0.975, n - 1) * np.std(pseudo, ddof=1) / n**0.5
    row = found.to_frame().iloc[0]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(
        (mean(everything), np.mean(pseudo) - half_width, np.mean(pseudo) + half_width)
    )
    title = plot_stability(found, ax=axis()).get_title()
    ends = f"[{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    assert title == f"SCU: Jaccard overlap (%)\nmean {100 * row['mean']:.0f} {ends}, by chance 5.0"


def bars(ax: Any) -> list[tuple[float, float, float]]:
    """Place and ends of each interval drawn as a line, in the order of drawing."""
    segments = [one for lines in ax.collections for one in lines.get_segments()]
    return [(float(a[0]), float(a[1]), float(b[1])) for a, b in segments]


def test_training_curves_have_an_interval_at_each_mark() -> None:
    rates = {0: (1.0, 0.9, 0.55), 1: (1.0, 0.85, 0.7)}
    runs = [
        {"scenario": "s", "arm": arm, "seed": seed, "curve": [
            {"step": 10 * i, "task_loss": 3.0 - i, "malicious_refused": rate} for i, rate in enumerate(values)
        ]}
        for arm in ("full", "kept") for seed, values in rates.items()
    ]  # fmt: skip
    record = {"runs": runs, "n_malicious": 20}
    ax = plot_study(record, against="step", ax=axis())
    drawn = bars(ax)
    assert [place for place, _, _ in drawn] == [0, 10, 20] * 2
    # All of 40 were refused at first: Clopper and Pearson's lower end, and no more than all.
    assert drawn[0][1:] == pytest.approx((0.025 ** (1 / 40), 1.0), abs=1e-6)
    low, high = drawn[2][1:]
    assert low < 0.55 < 0.7 < high
    marked = {line.get_label(): line.get_linestyle() for line in ax.lines if not line.get_label().startswith("_")}
    assert marked == {"full": "--", "kept": "-"}  # the control is told from what is tried

    one = {"runs": [run for run in runs if run["seed"] == 0], "n_malicious": 20}
    wilson = binomtest(18, 20).proportion_ci(method="wilson")
    assert bars(plot_study(one, against="step", ax=axis()))[1][1:] == pytest.approx((wilson.low, wilson.high), abs=1e-6)
    assert not plot_study(one | {"n_malicious": None}, ax=axis()).collections


def test_attacks_have_intervals_and_the_undefended_arm_is_told() -> None:
    harms = ((0.0, 0.3, 0.6), (0.0, 0.5, 0.9))
    within = [[{"step": step, "harm": harm} for step, harm in zip((0, 1, 2), seed, strict=True)] for seed in harms]
    fronts = [
        {"seed": seed, "utility_loss": loss, "harm": harm}
        for seed, points in enumerate([((-0.1, 0.2), (0.3, 0.6)), ((0.0, 0.4), (0.2, 0.8))])
        for loss, harm in points
    ]
    arms = ("nothing", "freeze")
    record = {
        "breaks_at": 0.5, "within": dict.fromkeys(arms, within), "fronts": dict.fromkeys(arms, fronts),
        "n_reported": 10, "reference": "nothing",
    }  # fmt: skip
    ax = plot_within(record, ax=axis())
    assert [place for place, _, _ in bars(ax)] == [0, 1, 2] * 2
    for (_, low, high), at in zip(bars(ax), range(3), strict=False):
        mean, *ends = rate_interval(torch.tensor([seed[at] for seed in harms]), trials=10)
        assert (low, high) == pytest.approx(ends)
        assert low <= mean <= high
    ax = plot_fronts(record, ax=axis())
    means = {line.get_label(): line for line in ax.lines if line.get_label() in arms}
    assert (means["nothing"].get_linestyle(), means["freeze"].get_linestyle()) == ("--", "-")
    # From where both seeds have a point: by hand, and in percent.
    assert np.allclose(means["freeze"].get_xydata(), [(0, 0.3), (20, 0.5), (30, 0.7), (100, 0.7)])
    assert len(ax.collections) == 2  # a band an arm
