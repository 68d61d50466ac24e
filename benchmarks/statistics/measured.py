"""Experiments on what is measured and not counted: means over seeds, judges' marks, losses, angle gaps, agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import torch

from benchmarks.detectors.agreement import kappa
from safecircuits.base.stats import mean_interval, rate_interval
from safecircuits.behavior.reference import ResponseLoss
from safecircuits.hooks.collect import Residuals
from safecircuits.layers.angles import unit_vectors
from safecircuits.layers.interval import gap_interval
from safecircuits.layers.pairs import all_across, all_within
from safecircuits.prompts.prompt_set import PromptSet

Experiment = Callable[[np.random.Generator], bool]
ANGLES, PROMPTS, WIDTH = 200, 30, 16
"""Bootstrap resamples of a gap, prompts of each set, dimensions."""


def measured() -> Iterator[tuple[str, str, Experiment]]:
    """What is simulated, in which setting, and one experiment: whether the interval holds the truth."""
    for seeds in (3, 5):
        yield "mean over seeds (Student)", f"{seeds} seeds, normal", partial(_seeds, seeds)
        yield (
            "difference of rates, paired by seed (Student)",
            f"{seeds} seeds of 100 prompts, rates 0.5 and 0.4, spread between seeds 0.1",
            partial(_paired_seeds, seeds),
        )
    for n in (20, 100):
        yield "a judge's mean mark, 1 to 5", f"{n} answers, most of them 1 or 5", partial(_marks, n)
        yield "loss a response token (bootstrap)", f"{n} responses of 5 to 60 tokens", partial(_loss, n)
    yield "κ of a detector (multinomial draws)", "300 answers, 10 % refusals, κ 0.67", _kappa
    yield "angle gap of a layer (bootstrap)", f"{PROMPTS} and {PROMPTS} prompts, {ANGLES} resamples", _gap


def _seeds(seeds: int, rng: np.random.Generator) -> bool:
    _, low, high = mean_interval(torch.from_numpy(rng.normal(2.0, 0.5, seeds)))
    return low <= 2.0 <= high


def _paired_seeds(seeds: int, rng: np.random.Generator) -> bool:
    rates = np.clip(rng.normal(0.0, 0.1, seeds) + np.array([[0.5], [0.4]]), 0, 1)
    ours, theirs = rng.binomial(100, rates) / 100
    _, low, high = mean_interval(torch.from_numpy(ours - theirs), within=(-1, 1))
    return low <= 0.1 <= high


_MARKS = np.array([0.5, 0.05, 0.05, 0.1, 0.3])


def _marks(n: int, rng: np.random.Generator) -> bool:
    marks = torch.from_numpy(rng.choice(np.arange(1.0, 6.0), n, p=_MARKS))
    _, low, high = rate_interval(marks, within=(1.0, 5.0))
    return low <= float(_MARKS @ np.arange(1, 6)) <= high


def _loss(n: int, rng: np.random.Generator) -> bool:
    """Each response has a difficulty of its own, so that its tokens are not independent; the mean of them all is 2."""
    tokens = rng.integers(5, 61, n)
    nats = rng.gamma(4.0, 0.5, n) * tokens
    low, high = ResponseLoss(torch.from_numpy(nats), torch.from_numpy(tokens), {}).interval
    return low <= 2.0 <= high


_CELLS = np.array([0.07, 0.03, 0.03, 0.87])
"""Hits, false alarms, misses and the rest."""


def _kappa(rng: np.random.Generator) -> bool:
    hits, false, missed, rest = (int(cell) for cell in rng.multinomial(300, _CELLS))
    table = {"refuses": {"refuses": hits, "complies": missed}, "complies": {"refuses": false, "complies": rest}}
    _, low, high = kappa(table)
    return low <= (0.94 - 0.82) / (1 - 0.82) <= high  # 0.82: both by chance, 0.1 × 0.1 + 0.9 × 0.9


def _sets(rng: np.random.Generator, n: int) -> list[torch.Tensor]:
    """Normal and malicious prompts of one layer: some lean towards the other set."""
    shift = np.zeros(WIDTH)
    shift[0] = 2.0
    leaning = rng.random((n, 1)) * shift
    common = np.ones(WIDTH)
    return [torch.from_numpy(rng.normal(size=(n, WIDTH)) + common + part)[None] for part in (0 * leaning, leaning)]


@cache
def _true_gap() -> float:
    n, m = (unit_vectors(one) for one in _sets(np.random.default_rng(1), 4000))
    return float((all_across(n, m).angle_deg - all_within(n).angle_deg)[0])


def _gap(rng: np.random.Generator) -> bool:
    sets = [
        Residuals(values.float(), (0,), PromptSet(name, tuple(f"{name} {i}" for i in range(PROMPTS))))
        for name, values in zip(("normal", "malicious"), _sets(rng, PROMPTS), strict=True)
    ]
    found = gap_interval(*sets, draws=ANGLES)
    return bool(found.low[0] <= _true_gap() <= found.high[0])
