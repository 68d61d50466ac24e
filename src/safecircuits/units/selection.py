"""Selections of units: indices by site and layer, taken from an order, counted, or drawn at random."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import checked, whole
from safecircuits.base.vocabulary import Site
from safecircuits.hooks.ablate import Units
from safecircuits.model.sites import ModelShape

Selection = dict[Site, dict[int, tuple[int, ...]]]
"""Unit indices by site and layer."""


def flat(by_site: Mapping[Site, Tensor]) -> Tensor:
    """All units in one row, site after site, layer after layer."""
    return torch.cat([values.flatten() for values in by_site.values()])


def unflat(row: Tensor, like: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """What ``flat`` put in one row, by site again."""
    pieces = torch.split(row, [values.numel() for values in like.values()])
    return {site: piece.reshape(values.shape) for (site, values), piece in zip(like.items(), pieces, strict=True)}


def by_layer(mask: Bool[Tensor, "layer unit"]) -> dict[int, tuple[int, ...]]:
    """The True units of each layer that has some."""
    return {layer: tuple(row.nonzero().flatten().tolist()) for layer, row in enumerate(mask) if row.any()}


def top(
    order: Mapping[Site, Float[Tensor, "layer unit"]], n: int, among: Bool[Tensor, " unit"] | None = None
) -> Selection:
    """The ``n`` units highest in ``order``, all sites and layers together; of equals the first.

    Args:
        among: which units may be taken, in the order of ``flat``; all of them unless given.

    Raises:
        ValueError: for a negative ``n`` or one larger than the number of units.
    """
    n, row = whole(n, "n"), flat(order)
    if among is not None:
        row = row.masked_fill(~among, float("-inf"))
    available = int(torch.isfinite(row).sum())
    if not 0 <= n <= available:
        raise ValueError(f"cannot take {n} of {available} units")
    picked = torch.zeros(len(row), dtype=torch.bool)
    picked[row.argsort(descending=True, stable=True)[:n]] = True
    return {site: by_layer(mask) for site, mask in unflat(picked, order).items()}


def top_in_proportion(
    order: Mapping[Site, Float[Tensor, "layer unit"]], n: int, among: Bool[Tensor, " unit"] | None = None
) -> Selection:
    """``top`` with as large a part of the neurons as of the heads, each ranked apart."""
    allowed = None if among is None else unflat(among, order)
    chosen: Selection = {}
    for site, count in in_proportion(whole(n, "n"), order).items():
        chosen |= top({site: order[site]}, count, None if allowed is None else allowed[site].flatten())
    return chosen


def within_budget(sizes: Float[Tensor, " unit"], budget: float) -> int:
    """How many leading units come nearest to ``budget`` together; ``sizes`` are theirs, in the order they are taken."""
    if len(sizes) == 0 or sizes.min() == sizes.max():
        return min(len(sizes), round(budget / float(sizes[0]))) if len(sizes) else 0
    total = torch.cat([torch.zeros(1, dtype=torch.float64), sizes.double().cumsum(0)])
    return int((total - budget).abs().argmin())


def highest(
    scores: Float[Tensor, " unit"], sizes: Float[Tensor, " unit"], budget: float, among: Bool[Tensor, " unit"]
) -> Bool[Tensor, " unit"]:
    """Which units score highest ``among`` those given, as many as come nearest to ``budget`` of ``sizes`` together."""
    order = scores.argsort(descending=True, stable=True)
    order = order[among[order]]
    chosen = torch.zeros_like(among)
    chosen[order[: within_budget(sizes[order], budget)]] = True
    return chosen


@dataclass(frozen=True)
class Shares:
    """What a share of units is a share of: of all in one ranking by their sizes, or of each site's in one of its own.

    Attributes:
        sizes: of each unit, in the order of ``flat``.
        sites: which units are of each site, for rankings of their own; the units are of one size then.
    """

    sizes: Float[Tensor, " unit"]
    sites: tuple[Bool[Tensor, " unit"], ...] | None = None

    def highest(
        self, scores: Float[Tensor, " unit"], share: float, among: Bool[Tensor, " unit"]
    ) -> Bool[Tensor, " unit"]:
        """The highest of ``scores`` among those given, as near to ``share`` of all units as there are units for."""
        if self.sites is None:
            return highest(scores, self.sizes, share * float(self.sizes.sum()), among)
        chosen = torch.zeros_like(among)
        counts = _dealt(round(share * len(scores)), [int(site.sum()) for site in self.sites])
        for site, n in zip(self.sites, counts, strict=True):
            chosen |= highest(scores, torch.ones_like(self.sizes), n, among & site)
        return chosen


def by_site(like: Mapping[Site, Tensor]) -> tuple[Bool[Tensor, " unit"], ...]:
    """For each site, which units in the order of ``flat`` are of it."""
    number = flat({site: torch.full(values.shape, i) for i, (site, values) in enumerate(like.items())})
    return tuple(number == i for i in range(len(like)))


def in_proportion(n: int, like: Mapping[Site, Tensor]) -> dict[Site, int]:
    """``n`` units dealt to sites by their number of units.

    Examples:
        >>> in_proportion(41, {"mlp": torch.zeros(8, 384), "attn": torch.zeros(8, 8)})
        {'mlp': 40, 'attn': 1}
    """
    return dict(zip(like, _dealt(n, [values.numel() for values in like.values()]), strict=True))


def _dealt(n: int, sizes: Sequence[int]) -> list[int]:
    """``n`` in whole parts proportional to ``sizes``; what rounding down leaves goes to the largest remainders."""
    exact = [n * size / sum(sizes) for size in sizes]
    parts = [int(value) for value in exact]
    for i in sorted(range(len(sizes)), key=lambda i: parts[i] - exact[i])[: n - sum(parts)]:
        parts[i] += 1
    return parts


def mean_ranks(values: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Ranks from 1 up in float64, equal values sharing their mean rank."""
    _, place, size = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = (size.cumsum(0) - (size - 1) / 2.0)[place].double()
    return ranks


def unit_sizes(like: Mapping[Site, Tensor], per_unit: Mapping[Site, float]) -> Float[Tensor, " unit"]:
    """The size of each unit in the order of ``flat``, from a size by site.

    Raises:
        ValueError: if a site has no size.
    """
    missing = [site for site in like if site not in per_unit]
    if missing:
        raise ValueError(f"the parameters of a unit of site {missing[0]!r} are unknown; score the units again")
    return flat({site: torch.full(values.shape, per_unit[site], dtype=torch.float64) for site, values in like.items()})


def count_units(units: Units) -> int:
    """Units in a selection, all sites and layers."""
    return sum(len(indices) for by_layer in units.values() for indices in by_layer.values())


@checked
def random_units(like: Units, shape: ModelShape, seed: int, *, per_layer: bool = False) -> Selection:
    """As many units of each site as ``like`` has, drawn without replacement from all layers.

    Args:
        per_layer: as many of each site in each layer instead, so that chance differs in *which* units alone.

    Examples:
        >>> scores = sc.score_units(model, malicious)
        >>> control = sc.units.random_units(scores.top(24), scores.shape, seed=0)
        >>> sum(len(units) for rows in control.values() for units in rows.values())
        24
    """
    generator = random.Random(int(seed))
    drawn: Selection = {}
    for site, rows in like.items():
        if per_layer:
            units = range(shape.n_units(site))
            drawn[site] = {k: tuple(sorted(generator.sample(units, len(rows[k])))) for k in sorted(rows) if rows[k]}
            continue
        n = sum(map(len, rows.values()))
        in_layer = shape.n_units(site)
        drawn[site] = {}
        for pick in sorted(generator.sample(range(shape.n_layers * in_layer), n)):
            layer, unit = divmod(pick, in_layer)
            drawn[site][layer] = (*drawn[site].get(layer, ()), unit)
    return drawn
