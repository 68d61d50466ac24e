"""Sort units into safety-critical (SCU), utility-critical (UCU), complex (CU) and redundant (RU) ones (SSAH §4.1).

With S and U a unit's importance on the safety and on the utility data: SCU have the highest S − U, UCU the lowest, RU
the lowest S + U, and CU are the rest. SCU can be taken by a causal score of refusal instead, which finds smaller ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import Site
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import ModelShape
from safecircuits.results.result import Result
from safecircuits.units.score_methods import ATTRIBUTION_METHODS
from safecircuits.units.scores import UnitScores, require_same_origin
from safecircuits.units.selection import Shares, by_site, flat, mean_ranks, top, unflat, unit_sizes, units_there

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Group = Literal["SCU", "UCU", "CU", "RU"]
GROUPS: tuple[Group, ...] = get_args(Group)

Normalisation = Literal["none", "zscore", "rank", "layer-mean", "log", "flap"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)

ShareOf = Literal["units", "parameters", "pooled"]
"""``"units"``: of the neurons and, apart, of the heads; ``"parameters"`` and ``"pooled"``: of both in one ranking, by
their parameters or all alike."""


@dataclass(frozen=True)
class UnitGroups(Result):
    """What ``classify_units`` found: the group of every unit (SCU, UCU, CU or RU); ``groups["SCU"]`` is a mask.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> groups = sc.classify_units(safety, answers, scu=0.01, ucu=0.1, ru=0.1)
        >>> print(groups)
        3,136 units: 31 SCU, 314 UCU, 2,477 CU, 314 RU
        >>> {name: round(share, 2) for name, share in groups.shares().items()}
        {'SCU': 0.01, 'UCU': 0.1, 'CU': 0.79, 'RU': 0.1}
        >>> (groups["SCU"] | groups["CU"]).n_units() == groups["SCU"].n_units() + groups["CU"].n_units()
        True
    """

    labels: Mapping[Site, Int[Tensor, "layer unit"]]
    difference: Mapping[Site, Float[Tensor, "layer unit"]]
    """S − U after normalisation: high is safety."""
    total: Mapping[Site, Float[Tensor, "layer unit"]]
    """S + U after normalisation: low is redundant."""
    shape: ModelShape
    provenance: dict[str, Any]

    def __getitem__(self, group: str) -> FreezeMask:
        """The units of a group, as in ``groups["SCU"] | groups["CU"]``; a ValueError if there is no such group."""
        if group not in GROUPS:
            raise ValueError(f"no group {group!r}; there are {', '.join(GROUPS)}")
        chosen = {site: labels == GROUPS.index(group) for site, labels in self.labels.items()}
        return FreezeMask.where(chosen, self.shape, {"group": group, **self.provenance})

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites whose units were classified."""
        return tuple(self.labels)

    @property
    def n_units(self) -> int:
        """How many units were classified."""
        return sum(int((labels >= 0).sum()) for labels in self.labels.values())

    @property
    def verdict(self) -> str:
        """How many units are in each group."""
        sizes = ", ".join(f"{self[group].n_units():,} {group}" for group in GROUPS)
        return f"{self.n_units:,} units: {sizes}"

    def shares(self) -> dict[str, float]:
        """Share of all scored units in each group."""
        return {group: self[group].n_units() / self.n_units for group in GROUPS}

    def top(
        self,
        n: int,
        group: Group | None = None,
        by: Literal["difference", "total"] = "difference",
        *,
        proportionate: bool = False,
    ) -> FreezeMask:
        """The ``n`` units highest by S − U or S + U, of one group or of all.

        Args:
            proportionate: as large a part of the neurons as of the heads; otherwise both are in one ranking.
        """
        order = self.difference if by == "difference" else self.total
        among = None if group is None else flat(self.labels) == GROUPS.index(group)
        provenance = {"top": n, "by": by, "group": group, "proportionate": proportionate, **self.provenance}
        return top(order, n, self.shape, among=among, proportionate=proportionate, provenance=provenance)

    def to_frame(self) -> pd.DataFrame:
        """Units of each group by site and layer."""
        import pandas as pd

        rows = [
            {"site": site, "layer": layer, **{g: int((row == i).sum()) for i, g in enumerate(GROUPS)}}
            for site, labels in self.labels.items()
            for layer, row in enumerate(labels)
        ]
        return pd.DataFrame(rows)

    def record(self) -> dict[str, dict[str, list[int]]]:
        """How many units of each group lie in each layer: site, then group, then one count a layer."""
        return {
            site: {group: (labels == i).sum(1).tolist() for i, group in enumerate(GROUPS)}
            for site, labels in self.labels.items()
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Where the groups lie: one row a site and group, one column a layer."""
        from safecircuits.plots.units import plot_unit_map

        return plot_unit_map(self, ax=ax)


@checked
def classify_units(
    safety: UnitScores,
    utility: UnitScores,
    *,
    scu: float,
    ucu: float,
    ru: float,
    scu_by: UnitScores | None = None,
    normalize: Normalisation = "none",
    share_of: ShareOf = "units",
) -> UnitGroups:
    """Sort every scored unit into SCU, UCU, RU or CU, by shares of the neurons and of the heads (SSAH §4.1).

    SCU and UCU are cut first, from the two ends of S − U; RU then takes the lowest S + U of the others.

    Args:
        safety, utility: scores of one model, of the same method and token choice, on the two data sets.
        scu, ucu, ru: shares between 0 and 1 (Llama-2-7b-chat in the paper: 0.013, 0.133, 0.148).
        scu_by: scores by which SCU are cut instead of S − U, such as ``method="attribution"`` on the safety data: where
            the answer is known, a handful of its highest units carry refusal.
        normalize: what is done to each data set's scores before they are subtracted: ``"none"``; ``"zscore"``,
            ``"layer-mean"`` (divide by the mean) and ``"rank"`` (equal scores share their mean rank) within each layer
            and site; ``"log"``; ``"flap"``, FLAP's own: neurons' scores and the squares of heads' channels are z-scored
            within each layer, and a head's mean over its channels taken (with ``"zscore"`` a head's channels are summed
            first and nothing is squared, which is another order altogether). The paper does not say; the ablation
            curve on a model with planted units is the judge.
        share_of: what shares are of. ``"units"``: of the neurons and, ranked apart, of the heads, so that a few per
            cent of units are never a large part of all heads. ``"parameters"``, as FLAP does: neurons and heads in one
            ranking, a head weighing as many neurons as have its parameters; a group ends where its parameters come
            nearest to its share. ``"pooled"``: one ranking in which a head counts as one neuron. On a real model of
            46,080 neurons and 270 heads that took a sixth of all heads for 1.3 % of the units, and as many random
            units then break it too. Of equal scores the first in order (neurons before heads, lower layers first).

    Raises:
        ValueError: for shares outside 0..1 or above 1 together, for scores that do not belong together, and for UCU or
            RU by an attribution: it says what promotes refusal, and nothing of what utility needs.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> groups = sc.classify_units(safety, answers, scu=0.01, ucu=0.1, ru=0.1)
        >>> sorted(groups.shares())
        ['CU', 'RU', 'SCU', 'UCU']
    """
    shares = {"scu": scu, "ucu": ucu, "ru": ru}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share between 0 and 1, not {share}")
    if scu + ucu + ru > 1:
        raise ValueError(f"the shares of SCU, UCU and RU add up to {scu + ucu + ru:g}, more than all units")
    _require_same_way(safety, utility)
    if safety.method in ATTRIBUTION_METHODS and (ucu or ru):
        raise ValueError(
            f"UCU and RU cannot be cut by {safety.method} scores, which say what promotes refusal but not what utility "
            'needs: classify by method="wifv" and pass these as scu_by=, or ask for ucu=0 and ru=0'
        )
    if scu_by is not None:
        require_same_origin(safety, scu_by, "the scores that SCU are cut by")
    s, u = (normalised_scores(scores, normalize) for scores in (safety, utility))
    difference = {site: s[site] - u[site] for site in s}
    total = {site: s[site] + u[site] for site in s}
    there, units = units_there(safety.scores, safety.shape), _shares(safety, share_of)
    safest = flat(difference if scu_by is None else {site: scu_by.scores[site] for site in s})[there]
    labels = torch.full((len(safest),), GROUPS.index("CU"), dtype=torch.int8)
    cuts: tuple[tuple[Group, float, Tensor], ...] = (
        ("SCU", scu, safest),
        ("UCU", ucu, -flat(difference)[there]),
        ("RU", ru, -flat(total)[there]),
    )
    for group, share, order in cuts:
        labels[units.highest(order, share, labels == GROUPS.index("CU"))] = GROUPS.index(group)
    causal = scu_by and {"method": scu_by.method, "tokens": scu_by.tokens, **scu_by.provenance}
    provenance = {
        **_made_of(safety, utility),
        **({"scu_by": causal} if causal else {}),
        "normalize": normalize,
        "shares": shares,
        "share_of": share_of,
    }
    return _groups_of(labels, (difference, total), safety, provenance)


@checked
def set_difference(
    safety: UnitScores,
    utility: UnitScores,
    *,
    p: float,
    q: float | None = None,
    result: float | None = None,
    share_of: ShareOf = "units",
) -> UnitGroups:
    """Wei et al.'s set difference over units: SCU are the top ``q`` by safety without the top ``p`` by utility.

    UCU are the top ``p`` by utility that are not top ``q`` by safety, CU are in both and RU in neither. No scores are
    subtracted, so nothing needs to be normalised between the two sets.

    Args:
        p: share that counts as top by utility.
        q: share that counts as top by safety; or
        result: the share that SCU shall have in the end, from the highest safety score down: what a baseline that
            freezes a given proportion of parameters asks for (NFFT in Safety Layers, with ``share_of="parameters"``).
        share_of: what the shares count; see ``classify_units``.

    Raises:
        ValueError: for shares outside 0..1, for both or none of ``q`` and ``result``, and for scores that do not
            belong together.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> groups = sc.set_difference(safety, answers, p=0.1, q=0.05)
        >>> groups.shares()["SCU"] <= 0.05
        True
    """
    if (q is None) == (result is None):
        raise ValueError("give either q=, the share that is top by safety, or result=, the share that SCU shall have")
    for name, share in {"p": p, "q": q, "result": result}.items():
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"{name} is a share between 0 and 1, not {share}")
    _require_same_way(safety, utility)
    there, units = units_there(safety.scores, safety.shape), _shares(safety, share_of)
    s, u = flat(safety.scores)[there], flat(utility.scores)[there]
    everything = torch.ones(len(s), dtype=torch.bool)
    useful = units.highest(u, p, everything)
    safe = units.highest(s, q, everything) if q is not None else units.highest(s, result or 0.0, ~useful)
    labels = _TOP_BY[safe.long(), useful.long()]
    like = safety.scores
    difference: dict[Site, Tensor] = {site: like[site] - utility.scores[site] for site in like}
    total: dict[Site, Tensor] = {site: like[site] + utility.scores[site] for site in like}
    provenance = {
        **_made_of(safety, utility),
        "rule": "set difference",
        "shares": {"p": p, "q": q, "result": result},
        "share_of": share_of,
    }
    return _groups_of(labels, (difference, total), safety, provenance)


_TOP_BY = torch.tensor([[GROUPS.index(g) for g in row] for row in (("RU", "UCU"), ("SCU", "CU"))], dtype=torch.int8)
"""The group of a unit by whether it is on top by safety (row) and by utility (column)."""


def _made_of(safety: UnitScores, utility: UnitScores) -> dict[str, Any]:
    scores = {"safety": safety.provenance, "utility": utility.provenance}
    return {**scores, "method": safety.method, "tokens": safety.tokens}


def _shares(scores: UnitScores, share_of: ShareOf) -> Shares:
    if share_of not in get_args(ShareOf):
        raise ValueError(f"share_of is 'units', 'parameters' or 'pooled', not {share_of!r}")
    per_unit = scores.unit_parameters if share_of == "parameters" else dict.fromkeys(scores.scores, 1.0)
    there, sites = units_there(scores.scores, scores.shape), by_site(scores.scores)
    sizes = unit_sizes(scores.scores, per_unit)[there]
    return Shares(sizes, tuple(site[there] for site in sites) if share_of == "units" else None)


def _groups_of(
    labels: Int[Tensor, " there"], values: Sequence[Mapping[Site, Tensor]], scores: UnitScores, made: dict[str, Any]
) -> UnitGroups:
    """With the group −1, which is none, and −∞ where there is no unit."""
    there = units_there(scores.scores, scores.shape)
    every = torch.full(there.shape, -1, dtype=torch.int8).masked_scatter(there, labels)
    difference, total = (unflat(torch.where(there, flat(rows), -torch.inf), rows) for rows in values)
    return UnitGroups(unflat(every, difference), difference, total, scores.shape, made)


def _require_same_way(safety: UnitScores, utility: UnitScores) -> None:
    require_same_origin(safety, utility, "the utility scores")
    if (safety.method, safety.tokens) != (utility.method, utility.tokens):
        raise ValueError(
            f"safety scores ({safety.method}, {safety.tokens} tokens) and utility scores ({utility.method}, "
            f"{utility.tokens} tokens) were not made the same way"
        )
    counted = [(scores.provenance.get("beginning") or {}).get("counted") for scores in (safety, utility)]
    if counted[0] != counted[1]:
        raise ValueError(
            "one of the two scores counts the positions that every prompt begins with and the other does not: score "
            "both with the same count_beginning="
        )


def normalised_scores(scores: UnitScores, how: Normalisation) -> dict[Site, Float[Tensor, "layer unit"]]:
    """Scores made comparable across layers; see ``classify_units``.

    Raises:
        ValueError: for an unknown way, and for ``"flap"`` with scores that are not of channels.
    """
    if how != "flap":
        return {site: normalised(values, how) for site, values in scores.scores.items()}
    found: dict[Site, Tensor] = {}
    for site in scores.scores:
        channels = scores.channel_scores(site)
        found[site] = normalised(channels.square() if site == "attn" else channels, "zscore")
    if "attn" in found:
        n_heads = scores.shape.n_heads
        found["attn"] = reduce(found["attn"], "layer (head width) -> layer head", "mean", head=n_heads)
    return found


def normalised(scores: Float[Tensor, "layer unit"], how: Normalisation) -> Float[Tensor, "layer unit"]:
    """Scores of one site made comparable across layers, all ways but FLAP's; see ``classify_units``."""
    if how == "none":
        return scores
    if how == "zscore":
        deviation = scores.std(-1, keepdim=True)
        return (scores - scores.mean(-1, keepdim=True)) / torch.where(deviation > 0, deviation, 1.0)
    if how == "layer-mean":
        mean = scores.mean(-1, keepdim=True)
        return scores / torch.where(mean > 0, mean, 1.0)
    if how == "rank":
        return torch.stack([mean_ranks(row) - 1 for row in scores]) / max(scores.shape[-1] - 1, 1)
    if how == "log":
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    raise ValueError(f"normalize is one of {', '.join(NORMALISATIONS)}, not {how!r}")
