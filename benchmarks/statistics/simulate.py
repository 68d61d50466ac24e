"""Experiments whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks.statistics.measured import measured
from safecircuits.base.paired import LEVEL, chosen_p, paired_difference, paired_p
from safecircuits.base.stats import Share, rate_interval, simultaneous_band
from safecircuits.layers.angles import unit_vectors
from safecircuits.layers.relabelled import largest_gap_p
from safecircuits.prompts.prompt_set import PromptSet

Interval = tuple[float, float]


def simulate(draws: int) -> dict[str, Any]:
    """Shares of ``draws`` experiments in which each interval holds the truth and each test sees an effect."""
    return {
        "draws": draws,
        "coverage": [
            {"what": what, "setting": setting, "covered": _share(draws, experiment)}
            for what, setting, experiment in (*_shares(), *_paired(), *_seeds(), *_bands(), *measured())
        ],
        "false_alarms": [
            {"what": what, "setting": setting, "alarms": _share(draws // rarer, experiment), "draws": draws // rarer}
            for what, setting, experiment, rarer in _tests()
        ],
    }


Experiment = Callable[[np.random.Generator], bool]


def _share(draws: int, experiment: Experiment) -> float:
    rng = np.random.default_rng(0)
    return sum(experiment(rng) for _ in range(draws)) / draws


def _shares() -> Iterator[tuple[str, str, Experiment]]:
    for n in (20, 100, 300):
        for rate in (0.0, 0.02, 0.3, 0.98):

            def wilson(rng: np.random.Generator, n: int = n, rate: float = rate) -> bool:
                low, high = _wilson(int(rng.binomial(n, rate)), n)
                return low <= rate <= high

            yield "one share (Wilson)", f"{n} prompts, rate {rate:g}", wilson


@cache
def _wilson(hits: int, n: int) -> Interval:
    return Share(hits, n).interval


def _paired() -> Iterator[tuple[str, str, Experiment]]:
    for n, up, down in ((100, 0.0, 0.0), (300, 0.007, 0.007), (300, 0.05, 0.05), (300, 0.2, 0.1), (100, 0.9, 0.0)):

        def paired(rng: np.random.Generator, n: int = n, up: float = up, down: float = down) -> bool:
            flips = rng.multinomial(n, [up, down, 1 - up - down])
            low, high = _difference(int(flips[0]), int(flips[1]), n)
            return low <= up - down <= high

        setting = f"{n} prompts, {100 * up:g} % flip one way and {100 * down:g} % the other"
        yield "paired difference (melded exact)", setting, paired


@cache
def _difference(up: int, down: int, n: int) -> Interval:
    place = torch.arange(n)
    return paired_difference(place < up, (place >= up) & (place < up + down))[1:]


def _seeds() -> Iterator[tuple[str, str, Experiment]]:
    for known in (True, False):
        for seeds in (3, 5):
            for rate, concentration in ((0.0, 1e9), (0.005, 50.0), (0.5, 10.0), (0.95, 50.0), (0.95, 1000.0)):

                def over(
                    rng: np.random.Generator, s: int = seeds, r: float = rate, c: float = concentration, k: bool = known
                ) -> bool:
                    own = rng.beta(r * c, (1 - r) * c, s) if r else np.zeros(s)
                    rates = torch.from_numpy(rng.binomial(100, own) / 100)
                    _, low, high = rate_interval(rates, trials=100 if k else None)
                    return low <= r <= high

                spread = "no spread" if not rate else f"spread {(rate * (1 - rate) / (concentration + 1)) ** 0.5:.3f}"
                setting = f"{seeds} seeds of 100 prompts, mean rate {rate:g}, {spread}"
                yield f"rate over seeds, prompts {'counted' if known else 'not known'}", setting, over


def _bands() -> Iterator[tuple[str, str, Experiment]]:
    for n in (40, 100):

        def band(rng: np.random.Generator, n: int = n) -> bool:
            truth = np.linspace(0, 1, 16)
            data = truth + rng.normal(size=(n, 1)) + rng.normal(size=(n, 16))
            resampled = data[rng.integers(0, n, (400, n))].mean(1)
            low, high = simultaneous_band(torch.from_numpy(data.mean(0)), torch.from_numpy(resampled))
            return bool(((low.numpy() <= truth) & (truth <= high.numpy())).all())

        yield "whole curve at once (sup-t)", f"16 layers, {n} prompts, 400 resamples, layers correlated", band


def _tests() -> Iterator[tuple[str, str, Experiment, int]]:
    for n, flips in ((300, 4), (300, 20)):

        def mcnemar(rng: np.random.Generator, n: int = n, flips: int = flips) -> bool:
            up = int(rng.binomial(flips, 0.5))
            place = torch.arange(n)
            return paired_p(place < up, (place >= up) & (place < flips)) < LEVEL

        yield "two configurations (exact McNemar)", f"{flips} of {n} prompts flip at random", mcnemar, 1

    def best_of(rng: np.random.Generator) -> bool:
        reference = torch.from_numpy(rng.random(100) < 0.5)  # as many can come as go
        shared = rng.random(100) < 0.05
        others = torch.from_numpy(rng.random((20, 100)) < 0.05)
        blocks = reference ^ torch.from_numpy(shared)[None] ^ others
        best = int(blocks.sum(1).argmax())
        return chosen_p(best, blocks, reference) < LEVEL

    yield "the best of 20 blocks (min-p)", "100 prompts, blocks flip at random, in part together", best_of, 5

    one, other = (PromptSet(name, tuple(f"{name} {i}" for i in range(30))) for name in ("one", "other"))

    def gap(rng: np.random.Generator) -> bool:
        states = torch.from_numpy(rng.normal(size=(12, 60, 16)) + rng.normal(size=(1, 60, 16)) + 1.0)
        vectors = unit_vectors(states)
        return largest_gap_p(vectors[:, :30], vectors[:, 30:], (one, other)) < LEVEL

    yield "the largest of 12 layers' gaps (relabelling)", "30 and 30 prompts of one kind", gap, 5
