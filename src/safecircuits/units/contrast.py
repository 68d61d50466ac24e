"""Units that fire otherwise on harmful than on harmless prompts, without those that fire on anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import checked, share
from safecircuits.base.vocabulary import SITES, Site, TokenChoice
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.units.importance import score_units
from safecircuits.units.moments import Moments
from safecircuits.units.scores import UnitScores, model_facts


@checked
def contrast_scores(
    model: HookedModel,
    harmful: PromptSet | Sequence[str],
    harmless: PromptSet | Sequence[str],
    *,
    tokens: TokenChoice = "prompt",
    universal: float = 0.05,
    sites: Sequence[Site] = SITES,
    template: str = "auto",
    max_tokens: int | None = None,
    count_beginning: bool = False,
    progress: bool = False,
) -> UnitScores:
    """How far apart a unit's mean activations on two sets are, in standard deviations within them; universal ones out.

    Of a neuron it is Cohen's d without its sign. A head's is the Euclidean distance of its mean z vectors over the root
    of the summed variances. A contrast says what differs between the sets, be it harm or topic: nothing about refusing.

    Args:
        harmful, harmless: should differ in harm alone; topic-matched pairs come nearest to that.
        tokens: whose positions count; the responses' take sets with responses.
        universal: the share of units, of each site, that count as strong; those that are on *both* sets, by root mean
            square activation over the unit's own layer's median, are universal. They have the score −∞, which no
            ``top`` takes. 0 keeps all.

    Raises:
        ValueError: for a set of one prompt, two sets that do not differ, or a share outside 0 to 1.

    Examples:
        >>> scores = sc.units.contrast_scores(model, malicious, normal)
        >>> scores.top(24).n_units(), scores.method
        (24, 'contrast')
    """
    universal = share(universal, "universal")
    sets = {"harmful": as_prompt_set(harmful, "harmful"), "harmless": as_prompt_set(harmless, "harmless")}
    for name, data in sets.items():
        if len(data) < 2:
            raise ValueError(f"the {name} set {data.name!r} has one prompt, which has no spread: give at least two")
    if sets["harmful"].fingerprint == sets["harmless"].fingerprint:
        raise ValueError(f"the harmful and the harmless set are the same {len(sets['harmful'])} prompts")
    options: dict[str, Any] = {"tokens": tokens, "sites": sites, "template": template, "max_tokens": max_tokens}
    options |= {"count_beginning": count_beginning, "progress": progress}
    a, b = (score_units(model, data, method="wifv", **options) for data in sets.values())
    moments: dict[Site, Moments] = {}
    dropped = {}
    for site, ours in a.moments.items():
        n_units, theirs = a.shape.n_units(site), b.moments[site]
        distance = _by_unit((ours.mean - theirs.mean).square(), n_units).sqrt()
        spread = ((_by_unit(ours.variance, n_units) + _by_unit(theirs.variance, n_units)) / 2).sqrt()
        score = torch.where(distance > 0, distance / spread, 0.0)
        strong = [_strong(_by_unit(m.mean_square, n_units).sqrt(), universal) for m in (ours, theirs)]
        everywhere = strong[0] & strong[1]
        dropped[site] = int(everywhere.sum())
        score = torch.where(everywhere, -torch.inf, score)
        moments[site] = Moments(min(ours.count, theirs.count), score, torch.zeros_like(score))
    provenance = {
        "harmful": a.provenance,
        "harmless": b.provenance,
        "universal": universal,
        "dropped": dropped,
        "beginning": a.provenance["beginning"],
    }
    empty = UnitScores(
        scores={},
        moments=moments,
        method="contrast",
        tokens=tokens,
        provenance=provenance,
        **model_facts(model, tuple(moments)),
    )
    return empty.rescore("contrast")


def _by_unit(channels: Float[Tensor, "layer channel"], n_units: int) -> Float[Tensor, "layer unit"]:
    return reduce(channels, "layer (unit width) -> layer unit", "sum", unit=n_units)


def _strong(activity: Float[Tensor, "layer unit"], part: float) -> Bool[Tensor, "layer unit"]:
    """The strongest of a site, each beside its layer's median, so that no layer is all of them."""
    beside = activity / activity.median(1, keepdim=True).values.clamp(min=1e-12)
    n = round(part * beside.numel())
    first = beside.flatten().argsort(descending=True, stable=True)[:n]
    return torch.zeros(beside.numel(), dtype=torch.bool).index_fill(0, first, True).view(beside.shape)
