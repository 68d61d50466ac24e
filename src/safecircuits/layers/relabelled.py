"""Could a gap as large as the largest of any layer come from prompts that are not of two kinds at all?

The labels normal and malicious are dealt out anew among the same prompts, many times. The largest gap over layers of
each deal is what the largest gap measured is held against: with thirty layers to choose from, one of them looks good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.stats import canonical_order
from safecircuits.layers.angles import Formula, degrees

if TYPE_CHECKING:
    from safecircuits.prompts.prompt_set import PromptSet

DEALS, ROWS = 499, 1024


def largest_gap_p(
    normal: Float[Tensor, "layer n d_model"],
    malicious: Float[Tensor, "layer m d_model"],
    prompts: tuple[PromptSet, PromptSet],
    *,
    formula: Formula = "paper",
    seed: int = 0,
) -> float:
    """p-value of the largest gap over layers, from 499 permutations of the labels; from 1/500 to 1.

    Layers are held against each other in standard deviations of their own gap over permutations (max-t): a degree in an
    early layer, where all angles are small, is not a degree in a late one.

    Args:
        normal, malicious: directions: vectors of length 1.
        prompts: both sets; the deals depend on them and not on their order.
    """
    first, second = (canonical_order(given.prompts) for given in prompts)
    pooled = torch.cat([normal[:, first], malicious[:, second]], dim=1)
    n, size = normal.shape[1], pooled.shape[1]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(DEALS + 1, size, dtype=pooled.dtype)
    labels[0, :n] = 1
    order = torch.rand(DEALS, size, generator=generator).argsort(1)
    labels[1:].scatter_(1, order[:, :n], 1.0)
    gaps = torch.stack([_gaps(layer, labels, formula) for layer in pooled], dim=1)
    spread = gaps.std(0)
    # A layer in which every deal gives the same tells nothing apart, whatever rounding leaves of it.
    scaled = torch.where(spread > 1e-9, (gaps - gaps.mean(0)) / spread, 0.0)
    largest = scaled.amax(1)
    return float((1 + (largest[1:] >= largest[0] - 1e-9).sum()) / (DEALS + 1))


def _gaps(
    directions: Float[Tensor, "prompt d_model"], labels: Float[Tensor, "deal prompt"], formula: Formula
) -> Float[Tensor, " deal"]:
    """The gap of one layer under each deal, in degrees, a thousand prompts against all at a time."""
    within = torch.zeros(len(labels), dtype=directions.dtype)
    from_normal = torch.zeros_like(within)
    for start in range(0, len(directions), ROWS):
        rows = slice(start, start + ROWS)
        pairs = directions[rows] @ directions.T
        if formula == "paper":
            pairs = degrees(pairs)
        here = torch.arange(len(pairs))
        pairs[here, here + start] = 0.0  # no prompt makes a pair with itself
        mine = labels[:, rows]
        within += (mine * (labels @ pairs.T)).sum(1)
        from_normal += mine @ pairs.sum(1)
    n = labels.sum(1)
    nn = within / (n * (n - 1))
    nm = (from_normal - within) / (n * (labels.shape[1] - n))
    return nm - nn if formula == "paper" else degrees(nm) - degrees(nn)
