"""Freeze masks of equally many parameters, of units, layers or both: what is frozen is then all that differs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import LayerRange, Site
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.units.groups import UnitGroups
from safecircuits.units.selection import by_site, flat, highest, unflat, unit_sizes


@checked
def equal_budget_masks(
    groups: UnitGroups,
    layers: LayerRange | tuple[int, int],
    unit_parameters: Mapping[Site, float],
    *,
    budget: float | None = None,
    seed: int = 0,
) -> dict[str, FreezeMask]:
    """Masks of equally many parameters that freeze the safest units, the safety layers, both, or what they share.

    ``"units"`` are the highest by S − U wherever they lie; ``"intersection"`` the highest inside the layers;
    ``"layers"`` are units of the layers by seed; ``"both"`` is half ``"units"`` and half ``"layers"``, drawn from those
    not yet taken; ``"random"``, the control, are as many neurons and as many heads as ``"units"`` by seed. Within the
    parameters of one unit all are of the same size.

    Args:
        layers: the safety layers, 0-indexed and inclusive.
        unit_parameters: parameters of a unit by site, as ``UnitScores.unit_parameters`` or ``parameters_per_unit``.
        budget: share of all units' parameters, at most that of the layers; a quarter of it unless given. With the
            whole of the layers, ``"layers"`` and ``"intersection"`` are the same.

    Raises:
        ValueError: for a budget that is not above 0, or larger than the layers.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> groups = sc.classify_units(safety, answers, scu=0.05, ucu=0.1, ru=0.1)
        >>> masks = sc.units.equal_budget_masks(groups, (3, 5), safety.unit_parameters)
        >>> sorted(masks)
        ['both', 'intersection', 'layers', 'random', 'units']
    """
    block = LayerRange.of(layers, groups.shape.n_layers)
    sizes = unit_sizes(groups.difference, unit_parameters)
    everything = float(sizes.sum())
    inside = FreezeMask.layers(block, groups.shape)
    within, order = flat({site: inside.at(site) for site in groups.sites}), flat(groups.difference)
    largest = float(sizes[within].sum()) / everything
    budget = largest / 4 if budget is None else budget
    if not 0 < budget <= largest + 1e-12:
        raise ValueError(
            f"the budget is a share of all units' parameters above 0 and at most {largest:.4g}, that of layers "
            f"{block}; not {budget:g}"
        )
    noise = torch.rand(len(order), generator=torch.Generator().manual_seed(int(seed)), dtype=torch.float64)
    everywhere = torch.ones_like(within)

    half = highest(order, sizes, budget / 2 * everything, everywhere)
    rest = budget - float(sizes[half].sum()) / everything
    safest = highest(order, sizes, budget * everything, everywhere)
    random = torch.zeros_like(within)
    for site in by_site(groups.difference):
        random |= highest(noise, torch.ones_like(sizes), float((safest & site).sum()), site)
    chosen = {
        "units": safest,
        "layers": highest(noise, sizes, budget * everything, within),
        "both": half | highest(noise, sizes, rest * everything, within & ~half),
        "intersection": highest(order, sizes, budget * everything, within),
        "random": random,
    }
    facts = {"layers": list(block), "budget": budget, "seed": seed}
    return {
        name: FreezeMask.where(unflat(row, groups.difference), groups.shape, {"equal_budget": name, **facts})
        for name, row in chosen.items()
    }
