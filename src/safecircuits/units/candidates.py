"""Ways to order units that may be compared: a score, whose tokens, how it is normalised, what contrast it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from safecircuits.base.vocabulary import TOKEN_CHOICES, Site, TokenChoice
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.units.answer_tokens import find_answer_tokens
from safecircuits.units.groups import NORMALISATIONS, Normalisation, normalised_scores
from safecircuits.units.importance import score_units
from safecircuits.units.score_methods import ACTIVATION_METHODS, ATTRIBUTION_METHODS, METHODS, Method
from safecircuits.units.scores import UnitScores
from safecircuits.units.selection import Shares, by_site, flat, unflat

Contrast = Literal["difference", "safety", "set-difference"]


@dataclass(frozen=True)
class Candidate:
    """One way to rank units: the score, its tokens, its normalisation, and how safety and utility are combined.

    ``contrast``: ``"difference"`` orders by S − U, ``"safety"`` by S alone, and ``"set-difference"`` by S with the top
    tenth by U put last.

    Raises:
        ValueError: for an unknown score, choice of tokens, normalisation or contrast.

    Examples:
        >>> sc.units.Candidate("wifv", "response", normalize="rank")
        Candidate(method='wifv', tokens='response', normalize='rank', contrast='difference')
    """

    method: Method
    tokens: TokenChoice
    normalize: Normalisation = "none"
    contrast: Contrast = "difference"

    def __post_init__(self) -> None:
        known = {
            "method": METHODS,
            "tokens": TOKEN_CHOICES,
            "normalize": NORMALISATIONS,
            "contrast": get_args(Contrast),
        }
        for field, names in known.items():
            if getattr(self, field) not in names:
                raise ValueError(f"{field} of a candidate is one of {', '.join(names)}, not {getattr(self, field)!r}")

    def __str__(self) -> str:
        shown = {"difference": "S − U", "safety": "S", "set-difference": "S without top U"}[self.contrast]
        return f"{self.method}, {self.tokens} tokens, {self.normalize}, {shown}"


def default_candidates(*, quick: bool = False) -> tuple[Candidate, ...]:
    """Every score with each normalisation that makes sense for it; ``quick`` takes the most informative ones.

    Attributions are signed, so that neither their logarithm nor their share of a mean means anything. Magnitude and
    random scores do not contrast two data sets. WIFV comes with all normalisations over all three choices of tokens,
    its kin with those over the response's; WIFN is not among them, as it puts units in the order of Wanda.

    Examples:
        >>> sorted({candidate.method for candidate in sc.units.default_candidates(quick=True)})
        ['attribution', 'ifv', 'integrated', 'magnitude', 'random', 'snip', 'taylor', 'wanda', 'wifv', 'wrms']
    """
    every: tuple[Normalisation, ...] = ("none", "log") if quick else ("none", "zscore", "rank", "layer-mean", "log")
    signed: tuple[Normalisation, ...] = ("none",) if quick else ("none", "zscore", "rank")
    candidates = [Candidate("wifv", tokens, how) for tokens in TOKEN_CHOICES for how in every]
    others: tuple[Method, ...] = ("ifv", "wrms", "wanda")
    for method in others:
        candidates += [Candidate(method, "response", how) for how in every]
        candidates += [Candidate(method, "prompt"), Candidate(method, "all")]
    gradients: tuple[Method, ...] = ("snip", "taylor")
    candidates += [Candidate(method, "all", how) for method in gradients for how in every]
    candidates += [Candidate("wifv", "response", "none", "set-difference")]
    candidates += [Candidate("wanda", "response", "none", "set-difference")]
    candidates += [Candidate(method, "all", "none", "set-difference") for method in gradients]
    attributions: tuple[Method, ...] = ("attribution", "integrated")
    for method in attributions:
        candidates += [Candidate(method, "prompt", how, "safety") for how in signed]
        candidates += [Candidate(method, "prompt", how, "difference") for how in signed]
    candidates += [Candidate("magnitude", "response", "none", "safety"), Candidate("random", "response")]
    return tuple(candidates)


class CandidateScores:
    """Each score once a data set, whatever the number of candidates that use it."""

    def __init__(
        self,
        model: HookedModel,
        safety: PromptSet,
        utility: PromptSet,
        reference: PromptSet,
        sites: tuple[Site, ...],
        sets: EvaluationOptions,
    ) -> None:
        self.model, self.reference, self.sites = model, reference, sites
        self.data = {"safety": safety, "utility": utility}
        self.common: dict[str, Any] = {key: sets[key] for key in ("template", "max_tokens") if key in sets}
        self.judged: dict[str, Any] = {key: sets[key] for key in ("detector", "max_new_tokens") if key in sets}
        self.known: dict[tuple[str, str, str], UnitScores] = {}
        self.answers: Any = None

    def get(self, method: Method, tokens: TokenChoice, which: str) -> UnitScores:
        base: Method = "wifv" if method in ACTIVATION_METHODS and method != "random" else method
        key = (base, tokens, which)
        if key not in self.known:
            options: dict[str, Any] = {}
            if method in ATTRIBUTION_METHODS:
                if self.answers is None:
                    self.answers = find_answer_tokens(
                        self.model, self.data["safety"], self.reference, **self.judged, **self.common
                    )
                options = {"reference": self.reference, "answers": self.answers}
            self.known[key] = score_units(
                self.model, self.data[which], method=base, tokens=tokens, sites=self.sites, **options, **self.common
            )
        return self.known[key].rescore(method)

    def order(self, candidate: Candidate) -> Mapping[Site, Tensor]:
        """A number a unit, high for what should be removed first."""

        def ready(which: str) -> dict[Site, Tensor]:
            return normalised_scores(self.get(candidate.method, candidate.tokens, which), candidate.normalize)

        safety = ready("safety")
        if candidate.contrast == "safety":
            return safety
        utility = ready("utility")
        if candidate.contrast == "difference":
            return {site: values - utility[site] for site, values in safety.items()}
        row, useful = flat(safety), flat(utility)
        last = row.min() - 1 - (row.max() - row.min())
        every = torch.ones(len(row), dtype=torch.bool)
        demoted = Shares(every.double(), by_site(safety)).highest(useful, 0.1, every)
        return unflat(torch.where(demoted, row - row.max() + last, row), safety)
