"""Which classification gives groups that are what their names say? SSAH's Table 1 on models whose refusal is known.

Every way of scoring (method, whose tokens, normalisation) cuts SCU, UCU and RU at the paper's shares of Llama-2, and
each group is removed. Without SCU the model should refuse less and still answer, without UCU the reverse, without RU
nothing should change. ``as_named`` sums that up. Part of ``benchmarks.ground_truth.units``.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import safecircuits as sc
from safecircuits.base.progress import track
from safecircuits.base.vocabulary import TOKEN_CHOICES, TokenChoice
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.units import UnitScores
from safecircuits.units.groups import Normalisation
from safecircuits.units.removals import Removals
from safecircuits.units.score_methods import Method

SCU, UCU, RU = 0.013, 0.133, 0.148
"""Shares of all units: those of Llama-2-7b-chat in the paper."""

NORMALISATIONS: tuple[Normalisation, ...] = ("none", "zscore", "rank", "layer-mean", "log")
WAYS: tuple[tuple[Method, TokenChoice, Normalisation], ...] = (
    *(("wifv", tokens, how) for tokens in TOKEN_CHOICES for how in NORMALISATIONS),
    *((method, tokens, "none") for method in ("wrms", "wanda") for tokens in TOKEN_CHOICES),
    ("snip", "all", "none"),
    ("taylor", "all", "none"),
    ("random", "all", "none"),
)


def removed_groups(
    model: HookedModel, safety: PromptSet, utility: PromptSet, removals: Removals, name: str
) -> list[dict[str, Any]]:
    """What each group's removal costs, as shares of what the intact model has: one row a way of scoring."""
    known: dict[tuple[str, str], tuple[UnitScores, UnitScores]] = {}
    rows = []
    for method, tokens, how in track(WAYS, f"groups of {name}"):
        if (method, tokens) not in known:
            s, u = (sc.score_units(model, data, method=method, tokens=tokens) for data in (safety, utility))
            known[method, tokens] = s, u
        groups = sc.classify_units(*known[method, tokens], normalize=how, scu=SCU, ucu=UCU, ru=RU)
        lost = {}
        for group in ("SCU", "UCU", "RU"):
            left = removals.without(groups[group]).rates
            lost[group] = {
                what: round(1 - left[rate] / removals.intact.rates[rate], 4)
                for what, rate in (("refusal", "malicious_refused"), ("utility", "utility"))
            }
        rows.append({"score": method, "tokens": tokens, "normalize": how, "lost": lost})
    return rows


def as_named(lost: dict[str, dict[str, float]]) -> float:
    """How far the groups do what their names say: 1 if each does so wholly, 1/3 if no removal changes anything.

    The mean over SCU, UCU and RU of refusal lost − utility lost, utility lost − refusal lost, and 1 − both.
    """
    scu, ucu, ru = (lost[group] for group in ("SCU", "UCU", "RU"))
    return mean([scu["refusal"] - scu["utility"], ucu["utility"] - ucu["refusal"], 1 - ru["refusal"] - ru["utility"]])
