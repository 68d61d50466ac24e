"""How much each MLP neuron and attention head matters on a data set: every score under one interface.

    WIFV:  I_j = Var_n(x_{n,j}) · ‖W_{:,j}‖²     (SSAH §4.1, FLAP)

where x is what enters the sublayer's output projection and W that projection: of a neuron, the fluctuation that its
removal takes out of the residual stream. A head owns d_head channels and scores their sum. That is less than, or more
than, what its removal takes out, tr(W Σ Wᵀ) with Σ the covariance of its channels: the sum is Σ's diagonal alone.
``"removal"`` is exact. The other scores: ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import Site, TokenChoice
from safecircuits.hooks.ablate import UnitValues
from safecircuits.model.beginning import beginning_facts, require_tokens
from safecircuits.model.sites import HookedModel, require_hooked, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.units.activation_scores import activation_moments
from safecircuits.units.answer_tokens import AnswerTokens, find_answer_tokens
from safecircuits.units.attribution import attribution_moments, mean_activations
from safecircuits.units.flap import flap_statistics
from safecircuits.units.gradient_scores import snip_moments, taylor_moments
from safecircuits.units.moments import Comoments, Moments
from safecircuits.units.score_methods import (
    ACTIVATION_METHODS,
    ATTRIBUTION_METHODS,
    DEFAULT_TOKENS,
    FLAP_METHODS,
    GRADIENT_METHODS,
    METHODS,
    REMOVAL_METHODS,
    Method,
)
from safecircuits.units.scores import UnitScores, head_grams, model_facts, require_sites, sites_to_score


@checked
def score_units(
    model: HookedModel,
    data: PromptSet,
    *,
    method: Method = "wifv",
    tokens: TokenChoice | None = None,
    sites: Sequence[Site] | None = None,
    reference: PromptSet | UnitValues | None = None,
    paired: bool = False,
    answers: AnswerTokens | None = None,
    steps: int = 8,
    seed: int = 0,
    template: str = "auto",
    max_tokens: int | None = None,
    count_beginning: bool = False,
    progress: bool = False,
) -> UnitScores:
    """Score every MLP neuron and attention head on ``data`` (prompts with responses), in one streaming pass.

    Args:
        method: one of ``METHODS``. Scores are per token or per prompt, so that sets of different length compare.
        tokens: whose activations count: those of the response (with its end of sequence), of the prompt, or all. All
            unless given; the prompt's for attribution, where they are the only choice. ``"snip"`` sums over all
            positions: weights have none.
        sites: whose units are scored: all that the model has, unless given. Those of a mixture of experts, ``"expert"``
            and ``"shared"``, have scores of activations alone. A neuron of an expert is scored over the tokens that
            are routed to its expert (``RoutedMoments.routed``), as it is before the router's weight multiplies it.
        reference: for attribution, what a unit is compared with: prompts (normal ones, over whose tokens the mean is
            taken), or a value a unit. With ``paired`` prompts of the same length, one for each of ``data``.
        answers: for attribution, which tokens refuse and which comply; found from the model's own answers to ``data``
            and the reference unless given.
        steps: for ``"integrated"``, how many points between reference and activation.
        seed: of ``"random"``.
        max_tokens: tokens in one batch, padding included; 8,192 unless given, or what fits into free memory. It does
            not change the result.
        count_beginning: whether the positions that every prompt begins with (template, system prompt, beginning of
            sequence; the first one in any case) count as well, as in the papers. They say nothing about a prompt, and
            on a real model, whose first position is an attention sink, they are nearly all of a variance and of a
            mean; what such a score compares between two sets is their length. Left out unless asked for, of the
            reference of an attribution too; ``"snip"`` knows no positions.

    Raises:
        ValueError: for a layer without such units; if the data has no responses although they are asked for, or fewer
            than two tokens count; for attribution without a reference.
        FloatingPointError: for an activation or a gradient that is not finite; names the hook point.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> safety.scores["mlp"].shape
        torch.Size([8, 384])
        >>> snip = sc.score_units(model, malicious, method="snip")
        >>> snip.method
        'snip'
    """
    require_hooked(model)
    data = as_prompt_set(data, "data")
    if method not in METHODS:
        raise ValueError(f"no unit score {method!r}; there are {', '.join(METHODS)}")
    tokens = tokens or DEFAULT_TOKENS[method]
    require_tokens(tokens)
    sites = sites_to_score(model) if sites is None else sites
    require_sites(model, sites, mixtures=method in ACTIVATION_METHODS or method in REMOVAL_METHODS)
    only = {"snip": "all", **dict.fromkeys(ATTRIBUTION_METHODS, "prompt")}.get(method, tokens)
    if tokens != only:
        raise ValueError(f"{method} scores are over {only} tokens; tokens={tokens!r} has no meaning for them")
    common: dict[str, Any] = {"sites": sites, "template": template, "max_tokens": max_tokens, "progress": progress}
    provenance: dict[str, Any] = {"data": data.identity, "template": template}
    if method != "snip":
        common["count_beginning"] = count_beginning
        provenance["beginning"] = beginning_facts(tokenizer_of(model), template, count_beginning)
    more_statistics: dict[str, Any] = {}
    if method == "removal":
        joint: dict[Site, Comoments] = {}
        moments = activation_moments(model, data, tokens=tokens, covariances=joint, **common)
        if joint:
            more_statistics = {"covariances": joint, "weight_grams": {"attn": head_grams(model)}}
    elif method in FLAP_METHODS:
        norm = method == "flap_wifn"
        moments = flap_statistics(model, data, fluctuation=not norm, tokens=tokens, **common)
    elif method in ACTIVATION_METHODS:
        moments = activation_moments(model, data, tokens=tokens, **common)
        provenance |= {"seed": seed} if method == "random" else {}
    elif method in GRADIENT_METHODS:
        data.require_responses()
        taylor = method == "taylor"
        moments = (
            taylor_moments(model, data, tokens=tokens, **common) if taylor else snip_moments(model, data, **common)
        )
    else:
        moments, more = _attribution(model, data, method, reference, paired, answers, steps, common)
        provenance |= more
    provenance["tokens_counted"] = next(iter(moments.values())).count
    empty = UnitScores(
        scores={},
        moments=moments,
        method=method,
        tokens=tokens,
        provenance=provenance,
        **more_statistics,
        **model_facts(model, sites),
    )
    return empty.rescore(method)


def _attribution(
    model: HookedModel,
    data: PromptSet,
    method: str,
    reference: PromptSet | UnitValues | None,
    paired: bool,
    answers: AnswerTokens | None,
    steps: int,
    common: dict[str, Any],
) -> tuple[dict[Site, Moments], dict[str, Any]]:
    if reference is None:
        raise ValueError(
            f"{method} compares with something: pass reference= (--reference), "
            "normal prompts, or from Python a value a unit"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    given = isinstance(reference, PromptSet)
    if paired and not given:
        raise ValueError("paired counterfactuals are prompts: pass reference=PromptSet(...)")
    if answers is None:
        if not isinstance(reference, PromptSet):
            raise ValueError("without reference prompts the answer tokens cannot be found: pass answers=")
        options = {key: common[key] for key in ("template", "max_tokens")}
        answers = find_answer_tokens(model, data, reference, **options)
    values: Any = reference
    if isinstance(reference, PromptSet) and not paired:
        values = mean_activations(model, reference, **common)
    many = steps if method == "integrated" else None
    moments = attribution_moments(model, data, answers, values, steps=many, **common)
    where = {**reference.identity, "paired": paired} if isinstance(reference, PromptSet) else "values"
    return moments, {"answers": asdict(answers), "reference": where, **({"steps": many} if many else {})}
