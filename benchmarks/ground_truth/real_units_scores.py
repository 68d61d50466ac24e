"""Ways to score units of a real model, and how much of their top is planted: by all prompts and by halves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.vocabulary import Site, TokenChoice
from safecircuits.model.beginning import beginning_facts
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.units.activation_scores import activation_moments
from safecircuits.units.answer_tokens import AnswerTokens, find_answer_tokens
from safecircuits.units.importance import score_units
from safecircuits.units.moments import Moments
from safecircuits.units.score_methods import ACTIVATION_METHODS, ATTRIBUTION_METHODS, GRADIENT_METHODS, Method
from safecircuits.units.scores import UnitScores, model_facts

CHUNKS = 8
"""Prompts are scored in so many parts; every half of the parts is a calibration subset."""

STEPS = 4
"""Points on the way from the reference to the activation, of ``integrated``."""


TOKENS: tuple[TokenChoice, ...] = ("all", "prompt", "response")


class Way(NamedTuple):
    """A score, whose tokens, whether what every prompt begins with counts, and the score itself (S) or S − U."""

    method: Method
    tokens: TokenChoice
    counted: bool
    contrast: str

    def __str__(self) -> str:
        beginning = ", beginning counted" if self.counted else ""
        return f"{self.method}, {self.tokens} tokens{beginning}, {self.contrast}"


def ways() -> Iterator[Way]:
    """Every score. WIFN is left out, as it orders units like Wanda."""
    places: list[tuple[TokenChoice, bool]] = [(t, c) for t in TOKENS for c in (False, True)]
    for counted in (False, True):
        yield Way("attribution", "prompt", counted, "S")
    kin: tuple[Method, ...] = ("wifv", "ifv", "wanda", "wrms")
    for method, (tokens, counted), contrast in itertools.product(kin, places, ("S − U", "S")):
        if not (counted and tokens == "response"):  # no response is at the beginning
            yield Way(method, tokens, counted, contrast)
    yield Way("magnitude", "all", False, "S")
    yield Way("random", "all", False, "S")
    for counted in (False, True):
        yield Way("taylor", "all", counted, "S − U")
    yield Way("integrated", "prompt", False, "S")
    yield Way("snip", "all", True, "S − U")


def dear(way: Way) -> bool:
    """Whether it takes many passes with gradients."""
    return way.method in (*GRADIENT_METHODS, "integrated")


def removed(way: Way) -> bool:
    """Whether its top is removed as well: WIFV in every way, its kin over all tokens; S − U as groups are cut."""
    if way.method in ("ifv", "wanda", "wrms"):
        return way.tokens == "all" and not way.counted and way.contrast == "S − U"
    return way.method != "wifv" or way.contrast == "S − U"


class Statistics:
    """What scores are made of, of each part of the prompts, computed once."""

    def __init__(self, model: HookedModel, safety: PromptSet, utility: PromptSet, site: Site) -> None:
        self.model, self.site = model, site
        self.data = {"S": safety, "U": utility}
        self.known: dict[tuple[str, str, bool, str], list[UnitScores]] = {}
        self.answers: AnswerTokens | None = None
        self.facts = model_facts(model, (site,))
        self.beginning: int = beginning_facts(tokenizer_of(model), "auto", count_beginning=False)["tokens"]
        """How many positions every prompt begins with."""

    def parts(self, method: Method, tokens: TokenChoice, counted: bool, which: str) -> list[UnitScores]:
        """Statistics of each part of S or U, from which that score is made."""
        base: Method = "wifv" if method in ACTIVATION_METHODS else method
        key = (base, tokens, counted and tokens != "response", which)
        if key not in self.known:
            if base == "wifv" and tokens == "all":
                both = zip(*(self.parts(base, of, counted, which) for of in ("prompt", "response")), strict=True)
                self.known[key] = [replace(_together(pair), tokens="all") for pair in both]
            else:
                self.known[key] = list(self._scored(base, tokens, counted, which))
        return self.known[key]

    def _scored(self, method: Method, tokens: TokenChoice, counted: bool, which: str) -> Iterator[UnitScores]:
        data = self.data[which]
        size = -(-len(data) // CHUNKS)
        common: dict[str, Any] = {"tokens": tokens, "sites": (self.site,), "count_beginning": counted}
        if method in ATTRIBUTION_METHODS:
            self.answers = self.answers or find_answer_tokens(self.model, self.data["S"], self.data["U"])
            means = _together(self.parts("wifv", "prompt", counted, "U")).mean
            common |= {"reference": means, "answers": self.answers, "steps": STEPS}
        for start in range(0, len(data), size):
            part = data[start : start + size]
            if method == "wifv":  # without the facts of the model anew for each part
                moments = activation_moments(
                    self.model, part, template="auto", max_tokens=None, progress=False, **common
                )
                known = {"method": method, "tokens": tokens, "provenance": part.identity, **self.facts}
                yield UnitScores(scores={}, moments=moments, **known).rescore(method)
            else:
                yield score_units(self.model, part, method=method, **common)

    def order(self, way: Way, chunks: Sequence[int] | None = None) -> Float[Tensor, "layer unit"]:
        """A number a unit from some of the parts, or from all; high for what refusal should need."""

        def scores(which: str) -> Tensor:
            parts = self.parts(way.method, way.tokens, way.counted, which)
            chosen = parts if chunks is None else [parts[i] for i in chunks]
            return _together(chosen).rescore(way.method).scores[self.site]

        return scores("S") - scores("U") if way.contrast == "S − U" else scores("S")

    def means(self) -> Mapping[Site, Mapping[int, Tensor]]:
        """Mean activation over ordinary prompts without what all begin with, as ``ablated(to=)`` takes it."""
        return _together(self.parts("wifv", "prompt", False, "U")).mean


def _together(parts: Sequence[UnitScores]) -> UnitScores:
    """The same statistics over the data of all parts."""
    first = parts[0]
    moments = {site: reduce(Moments.merge, (part.moments[site] for part in parts)) for site in first.moments}
    made_of = {"parts": [part.provenance for part in parts]}  # of which "random" draws its seed
    return replace(first, moments=moments, provenance=made_of).rescore(first.method)


def halves() -> list[tuple[int, ...]]:
    """Every half of the parts."""
    return list(itertools.combinations(range(CHUNKS), CHUNKS // 2))


def share_planted(order: Float[Tensor, "layer unit"], planted: Bool[Tensor, "layer unit"], k: int) -> float:
    """Which share of the ``k`` units highest in ``order`` is planted; of equals the first are taken."""
    highest = order.flatten().argsort(descending=True, stable=True)[:k]
    return float(planted.flatten()[highest].double().mean())


def overlap_row(
    order: Float[Tensor, "layer unit"],
    of_halves: Sequence[Float[Tensor, "layer unit"]],
    planted: Bool[Tensor, "layer unit"],
    k: int,
) -> dict[str, float]:
    """The share of the top ``k`` that is planted minus that of all units, and where 90 % of the halves' shares lie.

    Both of ``order`` (``above``) and of the halves (``low`` and ``high``, their 5th and 95th percentile).
    """
    chance = float(planted.double().mean())
    spread = [share_planted(one, planted, k) - chance for one in of_halves]
    low, high = np.quantile(spread, [0.05, 0.95])
    return {
        "chance": round(chance, 4),
        "above": round(share_planted(order, planted, k) - chance, 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def layers_of_top(order: Float[Tensor, "layer unit"], k: int) -> list[int]:
    """How many of the ``k`` highest lie in each layer."""
    highest = order.flatten().argsort(descending=True, stable=True)[:k]
    return torch.bincount(highest // order.shape[1], minlength=len(order)).tolist()
