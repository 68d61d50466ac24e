"""Where the refusal direction went: its cosine before to after, and what taking it out or adding it does to both.

The direction is the model's before: the mean of the malicious prompts minus that of harmless ones at the last token,
after the layer where it stands out most. It is ablated everywhere (malicious prompts), and added after that layer
(harmless ones), in either model; the null is a random direction of its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from safecircuits.base.counted import TOLD
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.evaluate import judge
from safecircuits.behavior.generate import generate
from safecircuits.behavior.verdict_table import Tally
from safecircuits.direction.interventions import direction_ablated, direction_added
from safecircuits.direction.means import directions_of, require_apart
from safecircuits.direction.prompt_states import prompt_states
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet

Change = Literal["ablated", "added"]
CONTROL = 0
"""Seed of the random direction."""


@dataclass(frozen=True)
class Estimated:
    """A number with its standard error over ``n`` prompts, and the degrees of freedom that the error has."""

    value: float
    error: float
    n: int
    freedom: int

    def below_p(self, limit: float) -> float:
        """p-value of "the number is at least the limit", by Student's t."""
        if self.error == 0:
            return float(self.value >= limit)
        from scipy.stats import t

        return float(t.cdf((self.value - limit) / self.error, self.freedom))

    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        from scipy.stats import t

        half = float(t.ppf(0.975, self.freedom)) * self.error
        return self.value - half, self.value + half

    def detectable(self, limit: float, level: float, power: float) -> float:
        """The number that would be found to be below the limit in a share ``power`` of cases, were the error this."""
        from scipy.stats import t

        return limit - float(t.ppf(1 - level, self.freedom) + t.ppf(power, self.freedom)) * self.error


@dataclass(frozen=True)
class DirectionFound:
    """What became of the direction.

    Attributes:
        layer: after which it was taken.
        cosine: of the direction before with that after.
        left: how much of the difference before is in that after.
        refused: by (``ablated`` or ``added``, ``direction`` or ``random``), verdicts of the model before and after.
        tallies: by the same, what their answers are.
    """

    layer: int
    cosine: Estimated
    left: Estimated
    refused: dict[tuple[str, str], tuple[Tensor, Tensor]]
    tallies: dict[tuple[str, str], tuple[Tally, Tally]]

    def numbers(self) -> dict[str, float]:
        """Where the direction was taken, the null of each share, and what stands beside: what no limit is set to."""
        found = {"direction_layer": float(self.layer)}
        for (what, of), pair in self.refused.items():
            if of == "random":
                for when, verdicts in zip(("before", "after"), pair, strict=True):
                    found[f"direction_{what}_refused_random_{when}"] = float(verdicts.double().mean())
        for (what, of), tallies in self.tallies.items():
            for when, tally in zip(("before", "after"), tallies, strict=True):
                beside = tally.record("")
                names = [name for name in TOLD if name in beside]
                random = "_random" if of == "random" else ""
                found |= {f"direction_{what}_{name}{random}_{when}": float(beside[name]) for name in names}
        return found


def direction_moved(
    old: HookedModel,
    new: HookedModel,
    malicious: PromptSet,
    normal: PromptSet,
    *,
    changes: Collection[Change] = get_args(Change),
    detector: str | RefusalDetector,
    refusal_tokens: int,
    template: str,
    system: str | None,
    max_tokens: int | None,
    progress: bool,
) -> DirectionFound:
    """Find the direction in ``old`` and see what it is and does in ``new``.

    Args:
        changes: what is done with it to both models, beside a random one: four more sets of answers each.

    Raises:
        ValueError: for fewer than four prompts of a kind, a prompt of both kinds, and a model before in which the two
            differ no more than shuffled labels do.
    """
    require_apart(malicious, normal)
    asked: dict[str, Any] = {"template": template, "system": system, "max_tokens": max_tokens}
    states = [prompt_states(model, malicious, normal, progress=progress, **asked) for model in (old, new)]
    means = directions_of(states[0])
    layer = means.clearest
    n = states[0].n_harmful
    a, b = (one.values[layer, -1].double() for one in states)
    direction = means.at(layer)
    control = means.random(direction, CONTROL)
    refused: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    tallies: dict[tuple[str, str], tuple[Tally, Tally]] = {}
    made: dict[Change, tuple[PromptSet, Callable[..., Any]]] = {
        "ablated": (malicious, direction_ablated),
        "added": (normal, direction_added),
    }
    for what in changes:
        prompts, change = made[what]
        for of, vector in (("direction", direction), ("random", control)):
            pair, told = [], []
            for model in (old, new):
                with change(model, vector):
                    said = generate(model, prompts, max_new_tokens=refusal_tokens, progress=progress, **asked)
                behavior = judge({"malicious": said}, detector, unchanged=old, template=template, system=system)
                assert behavior.malicious is not None
                pair.append(behavior.malicious)
                told.append(behavior.tallies["malicious"])
            refused[what, of], tallies[what, of] = (pair[0], pair[1]), (told[0], told[1])
    kinds = ((a[:n], b[:n]), (a[n:], b[n:]))
    return DirectionFound(layer, cosine_of_means(kinds), left_of_means(kinds), refused, tallies)


Kinds = tuple[tuple[Tensor, Tensor], ...]
"""Harmful and harmless prompts, each before and after: ``[prompt d_model]``, of the same prompts."""


def cosine_of_means(kinds: Kinds) -> Estimated:
    """The cosine of the differences of means before and after, as more prompts would give it.

    A difference of means is the direction plus noise of the prompts that were drawn, which lengthens both and shortens
    their cosine. So products of a prompt with itself are left out: ‖d‖² is of pairs of different prompts, and so is
    ⟨d, d'⟩, as both are of the same prompts. Where nothing is left of a direction there is no cosine: 0, with an
    infinite error.
    """

    def cosine(of: Kinds) -> float:
        first, second = _product(of, 0, 0), _product(of, 1, 1)
        if first <= 0 or second <= 0:
            return math.nan
        return max(-1.0, min(1.0, _product(of, 0, 1) / math.sqrt(first * second)))

    return _jackknifed(cosine, kinds)


def left_of_means(kinds: Kinds) -> Estimated:
    """How much of the difference before is in that after, ⟨d, d'⟩ / ‖d‖², by the same products."""

    def left(of: Kinds) -> float:
        length = _product(of, 0, 0)
        return _product(of, 0, 1) / length if length > 0 else math.nan

    return _jackknifed(left, kinds)


def _jackknifed(statistic: Callable[[Kinds], float], kinds: Kinds) -> Estimated:
    """The statistic with the error that leaving out each prompt in turn gives it."""
    value, variance = statistic(kinds), 0.0
    for which, (one, other) in enumerate(kinds):
        n = len(one)
        without = []
        for row in range(n):
            kept = torch.arange(n) != row
            pairs = list(kinds)
            pairs[which] = (one[kept], other[kept])
            without.append(statistic(tuple(pairs)))
        left = torch.tensor(without, dtype=torch.float64)
        variance += float((n - 1) / n * (left - left.mean()).square().sum())
    n = sum(len(one) for one, _ in kinds)
    if not math.isfinite(value + variance):
        return Estimated(0.0, math.inf, n, n - 2)
    return Estimated(value, math.sqrt(variance), n, n - 2)


def _product(kinds: Kinds, left: int, right: int) -> float:
    """Of two differences of means, without the products of a prompt with itself."""
    (harmful, harmless), noise = kinds, 0.0
    for kind in kinds:
        u, v = kind[left], kind[right]
        noise += float(((u - u.mean(0)) * (v - v.mean(0))).sum()) / (len(u) - 1) / len(u)
    x, y = (harmful[which].mean(0) - harmless[which].mean(0) for which in (left, right))
    return float(x @ y) - noise
