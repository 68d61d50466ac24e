"""Units taken from an order: the highest of all or of each site, a share of them, or as many as a budget allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import whole
from safecircuits.base.vocabulary import Site
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.masks.reading import present
from safecircuits.model.sites import ModelShape


def flat(by_site: Mapping[Site, Tensor]) -> Tensor:
    """All units in one row, site after site, layer after layer."""
    return torch.cat([values.flatten() for values in by_site.values()])


def units_there(like: Mapping[Site, Tensor], shape: ModelShape) -> Bool[Tensor, " unit"]:
    """Which entries, in the order of ``flat``, are units: beside mixtures of experts not all layers have all sites."""
    return flat({site: present(shape, site).expand(rows.shape) for site, rows in like.items()})


def unflat(row: Tensor, like: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """What ``flat`` put in one row, by site again."""
    pieces = torch.split(row, [values.numel() for values in like.values()])
    return {site: piece.reshape(values.shape) for (site, values), piece in zip(like.items(), pieces, strict=True)}


def top(
    order: Mapping[Site, Float[Tensor, "layer unit"]],
    n: int,
    shape: ModelShape,
    *,
    among: Bool[Tensor, " unit"] | None = None,
    proportionate: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> FreezeMask:
    """The ``n`` units highest in ``order``, all sites and layers together; of equals the first.

    Args:
        among: which units may be taken, in the order of ``flat``; all of them unless given.
        proportionate: as large a part of the neurons as of the heads, each ranked apart.

    Raises:
        ValueError: for a negative ``n`` or one larger than the number of units.
    """
    n, row = whole(n, "n", 0), flat(order)
    allowed = torch.isfinite(row) if among is None else torch.isfinite(row) & among
    counts: list[int] = [n]
    sites: tuple[Tensor, ...] = (torch.ones_like(allowed),)
    if proportionate:
        counts, sites = list(in_proportion(n, order).values()), by_site(order)
    picked = torch.zeros_like(allowed)
    for count, site in zip(counts, sites, strict=True):
        if count > int((allowed & site).sum()):
            raise ValueError(f"cannot take {count} of {int((allowed & site).sum())} units")
        picked |= highest(row, torch.ones_like(row), count, allowed & site)
    return FreezeMask.where(unflat(picked, order), shape, provenance)


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
