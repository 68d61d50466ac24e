"""Random regions as large as given ones, blocks of layers or units, and how much of an overlap is beyond theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.vocabulary import ALL_SITES, Site
from safecircuits.masks.freeze_mask import FreezeMask

Sets = np.ndarray[Any, np.dtype[np.float64]]
"""One row a region, 1 for what is in it."""

Redraw = Callable[[np.random.Generator], Sets]


def block(mask: FreezeMask) -> tuple[int, int] | None:
    """First layer and length of a contiguous block of whole layers; None for anything else."""
    layers = mask.whole_layers
    if not layers or mask != FreezeMask.layers(set(layers)).on(mask.shape):
        return None
    return (layers[0], len(layers)) if layers[-1] - layers[0] + 1 == len(layers) else None


def random_blocks(masks: list[FreezeMask], n_layers: int) -> tuple[Sets, Sets, Redraw]:
    """Rows of layers; how often a random block of that length holds each layer; and random ones."""
    places = [place for mask in masks if (place := block(mask)) is not None]

    def rows(firsts: list[int]) -> Sets:
        out = np.zeros((len(places), n_layers))
        for row, first, (_, length) in zip(out, firsts, places, strict=True):
            row[first : first + length] = 1
        return out

    def redraw(rng: np.random.Generator) -> Sets:
        return rows([int(rng.integers(0, n_layers - length + 1)) for _, length in places])

    held = np.zeros((len(places), n_layers))
    for row, (_, length) in zip(held, places, strict=True):
        for first in range(n_layers - length + 1):
            row[first : first + length] += 1 / (n_layers - length + 1)
    return rows([first for first, _ in places]), held, redraw


def random_units_like(masks: list[FreezeMask], gone: FreezeMask | None) -> tuple[Sets, Sets, Redraw]:
    """The same of units: as many of each site, among those that count."""
    parts: list[Sets] = []
    for site in ALL_SITES:
        rows = torch.stack([_flat(mask, site) for mask in masks])
        kept = torch.ones(rows.shape[1], dtype=torch.bool) if gone is None else ~_flat(gone, site)
        parts.append(rows[:, kept].double().numpy())

    def redraw(rng: np.random.Generator) -> Sets:
        again = []
        for part in parts:
            out = np.zeros_like(part)
            for row, size in zip(out, part.sum(1).astype(int), strict=True):
                row[rng.choice(part.shape[1], size, replace=False, shuffle=False)] = 1
            again.append(out)
        return np.concatenate(again, axis=1)

    held = [np.repeat(part.mean(1, keepdims=True), part.shape[1], axis=1) for part in parts if part.shape[1]]
    return np.concatenate(parts, axis=1), np.concatenate(held, axis=1), redraw


def _flat(mask: FreezeMask, site: Site) -> Bool[Tensor, " unit"]:
    return mask.at(site).flatten()


def beyond_chance(sets: Sets, shared: Sets, expected: Sets) -> Sets:
    """Of each pair what it shares beyond chance, of what it could at most; NaN where chance alone gives all."""
    sizes = sets.sum(1)
    most = np.minimum(sizes[:, None], sizes[None])
    room = most - expected
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room > 1e-9, (shared - expected) / room, np.nan)
