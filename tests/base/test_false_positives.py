"""How often a verdict is wrong where nothing is there, and how often it is right where something is, by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from safecircuits.base import paired
from safecircuits.base.paired import LEVEL, chosen_p, paired_p, rivals
from safecircuits.hooks.collect import Residuals
from safecircuits.layers.comparison import _difference
from safecircuits.layers.interval import resampled_gaps
from safecircuits.layers.similarity import compare
from safecircuits.prompts.prompt_set import PromptSet

PROMPTS = 300


def swept(
    rng: np.random.Generator, n: int, *, offset: float, shared: float, effect: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The unscaled model's verdicts and those of ``n`` blocks, the first of them with an ``effect``.

    A prompt is refused where its margin is above 0. Each configuration moves margins by noise, of which blocks share a
    part: neighbouring blocks flip mostly the same prompts.
    """
    margin, noise = rng.normal(size=PROMPTS) - offset, 0.3 * rng.normal(size=(n + 1, PROMPTS))
    noise[1:] = np.sqrt(shared) * 0.3 * rng.normal(size=PROMPTS) + np.sqrt(1 - shared) * noise[1:]
    moved = margin + noise
    moved[1] += effect
    verdicts = torch.from_numpy(moved > 0)
    return verdicts[0], verdicts[1:]


def apart(baseline: torch.Tensor, blocks: torch.Tensor) -> tuple[bool, bool]:
    """Whether the best block is called apart from the unscaled model: corrected for the choice, and uncorrected."""
    best = int(blocks.sum(1).argmax())
    plain = paired_p(blocks[best], baseline) < LEVEL  # the corrected p-value is never smaller
    return plain and chosen_p(best, blocks, baseline) < LEVEL, plain


@pytest.mark.parametrize(("offset", "shared"), [(0.0, 0.0), (1.0, 0.7)])
@pytest.mark.parametrize("n", [1, 9, 36])
def test_the_best_of_many_is_apart_by_chance_in_no_more_than_5_percent(
    n: int, offset: float, shared: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "DRAWS", 399)
    rng, sweeps = np.random.default_rng(n), 1000
    found = np.array([apart(*swept(rng, n, offset=offset, shared=shared)) for _ in range(sweeps)]).mean(0)
    assert found[0] <= binom.ppf(0.999, sweeps, LEVEL) / sweeps
    if n == 36:
        assert found[1] > 2 * LEVEL, "the simulation would not notice a missing correction"


@pytest.mark.parametrize(("n", "least"), [(1, 0.95), (9, 0.9), (36, 0.85)])
def test_a_real_effect_is_found(n: int, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block makes the model refuse some 20 of 300 prompts more."""
    monkeypatch.setattr(paired, "DRAWS", 399)
    rng = np.random.default_rng(n)
    found = [apart(*swept(rng, n, offset=1.0, shared=0.7, effect=0.3))[0] for _ in range(150)]
    assert np.mean(found) >= least


def test_all_flips_of_a_single_configuration() -> None:
    """Given how many verdicts differ, which way each goes is a coin: no number of them rejects in more than 5 %."""
    for size in range(1, 60):
        up = np.arange(size + 1)
        p = [paired_p(torch.arange(size) < k, torch.arange(size) >= k) for k in up]
        assert binom.pmf(up, size, 0.5)[np.array(p) < LEVEL].sum() <= LEVEL


def test_the_true_best_is_among_the_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine blocks one is best by a little: with the block that came out best, the rivals hold it in 95 %."""
    monkeypatch.setattr(paired, "DRAWS", 399)
    rng, held, left_out = np.random.default_rng(5), [], 0
    for _ in range(400):
        _, blocks = swept(rng, 9, offset=1.0, shared=0.7, effect=0.05)
        best = int(blocks.sum(1).argmax())
        others = rivals(best, blocks)
        held.append(best == 0 or 0 in others)
        left_out += len(blocks) - 1 - len(others)
    assert np.mean(held) >= 0.95 - 3 * (0.05 * 0.95 / len(held)) ** 0.5
    assert left_out > 0


def layered(rng: np.random.Generator, n: int, name: str, shift: float = 0.0) -> Residuals:
    """Prompts in six layers, each layer much like the one before, as residual streams are."""
    steps = rng.normal(size=(6, n, 10))
    values = np.cumsum(steps, axis=0) + 2.0
    values[3:, :, :3] += shift
    return Residuals(torch.from_numpy(values), tuple(range(6)), PromptSet(name, tuple(f"{name} {i}" for i in range(n))))


def test_the_largest_gap_of_all_layers_against_chance() -> None:
    rng = np.random.default_rng(0)
    null = [compare(layered(rng, 12, "n"), layered(rng, 15, "m")) for _ in range(200)]
    assert np.mean([not gap.within_noise for gap in null]) <= binom.ppf(0.999, 200, LEVEL) / 200
    real = [compare(layered(rng, 12, "n"), layered(rng, 15, "m", shift=-4.0)) for _ in range(30)]
    assert np.mean([not gap.within_noise for gap in real]) > 0.9
    assert "within noise" in max(null, key=lambda gap: gap.p or 0).verdict
    assert "within noise" not in min(real, key=lambda gap: gap.p or 1).verdict


def test_layers_in_which_two_models_differ() -> None:
    """Two models whose gaps are the same but for chance: a layer apart in no more than 5 %, six to choose from."""
    rng = np.random.default_rng(1)

    def differing(shift: float) -> tuple[bool, bool]:
        gaps, drawn = [], []
        for model_shift in (shift, 0.0):
            sets = layered(rng, 30, "n"), layered(rng, 30, "m", model_shift)
            gaps.append(compare(*sets))
            drawn.append(resampled_gaps(*sets, draws=300))
        difference = drawn[0] - drawn[1]
        pointwise = torch.quantile(difference, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
        alone = bool(((pointwise[0] > 0) | (pointwise[1] < 0)).any())
        return bool(_difference(gaps[0], gaps[1], difference).layers_apart), alone

    null = np.array([differing(0.0) for _ in range(150)]).mean(0)
    assert null[0] <= binom.ppf(0.999, 150, LEVEL) / 150
    assert null[0] < null[1], "layer by layer it happens more often"
    assert np.mean([differing(-4.0)[0] for _ in range(20)]) > 0.9
