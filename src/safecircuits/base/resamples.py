"""How sure is a range of layers? What the rule that names it says of resampled prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.text import percent
from safecircuits.base.vocabulary import LayerRange

DRAWS = 1000
SURE = 0.5
"""The share of resamples from which on a range is more than a guess."""


@dataclass(frozen=True)
class RangeResamples:
    """The range that a rule names in each of many bootstrap resamples of the prompts; None where it names none.

    Examples:
        >>> found = RangeResamples((LayerRange(3, 5), LayerRange(3, 5), LayerRange(3, 6), None))
        >>> print(found.words(LayerRange(3, 5)))
        50 % of resamples; last 5 to 6; none in 25 %
    """

    draws: tuple[LayerRange | None, ...]

    @property
    def shares(self) -> dict[LayerRange | None, float]:
        """How often each range is named, most frequent first."""
        return {layers: count / len(self.draws) for layers, count in Counter(self.draws).most_common()}

    def share(self, layers: LayerRange | None) -> float:
        """How often a resample names just these."""
        return self.draws.count(layers) / len(self.draws)

    @property
    def bounds(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """95 % bootstrap interval of the first layer and of the last, over resamples that name any; None if none does.

        Both ends are layers that a resample named, so that the interval holds at least 95 % of them.
        """
        named = [layers for layers in self.draws if layers is not None]
        if not named:
            return None
        firsts, lasts = (sorted(ends) for ends in zip(*named, strict=True))
        cut = int(0.025 * len(named))
        return (firsts[cut], firsts[-1 - cut]), (lasts[cut], lasts[-1 - cut])

    def words(self, layers: LayerRange | None) -> str:
        """How often resamples name these layers, and between which layers theirs begin and end, where that varies."""
        parts = [f"{100 * self.share(layers):.0f} % of resamples"]
        if self.bounds is not None and layers is not None:
            for name, (low, high) in zip(("first", "last"), self.bounds, strict=True):
                parts += [f"{name} {low} to {high}"] if low < high else []
        none = self.share(None)
        if layers is not None and none:
            parts.append(f"none in {100 * none:.0f} %")
        return "; ".join(parts)

    def doubt(self, layers: LayerRange | None) -> str:
        """Why these layers are no more than a guess; empty where at least half of the resamples name just them.

        Examples:
            >>> found = RangeResamples((LayerRange(3, 5), LayerRange(3, 6), LayerRange(2, 6)))
            >>> print(found.doubt(LayerRange(3, 5)).partition(":")[0])
            layers [3, 5] are a best guess
        """
        if layers is None or self.share(layers) >= SURE:
            return ""
        assert self.bounds is not None
        ends = zip(("first layer", "last"), self.bounds, strict=True)
        between = ", ".join(f"{name} {low} to {high}" for name, (low, high) in ends if low < high)
        between = f" ({between})" if between else ""
        return (
            f"layers {layers} are a best guess: {len(self.draws):,} resamples of the prompts gave exactly these in "
            f"only {percent(self.share(layers))} of cases{between}; more prompts make it surer"
        )

    def record(self, layers: LayerRange | None) -> dict[str, Any]:
        """``share`` of resamples that name ``layers``, intervals of ``first`` and ``last``, share of ``none``."""
        first, last = self.bounds or (None, None)
        return {"share": self.share(layers), "first": first, "last": last, "none": self.share(None)}


def multiplicities(n: int, draws: int, generator: torch.Generator) -> Float[Tensor, "draw prompt"]:
    """How often each of ``n`` prompts is in each resample of size ``n``."""
    picks = torch.randint(n, (draws, n), generator=generator)
    return torch.zeros(draws, n, dtype=torch.float64).scatter_add_(1, picks, torch.ones(draws, n, dtype=torch.float64))
