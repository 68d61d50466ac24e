"""Mean and standard deviation of the cosine over all pairs of prompts: closed forms against the pairwise matrix."""

from __future__ import annotations

import torch

from benchmarks.performance.timing import Row, faster, growth, interleaved
from safecircuits.layers.pairs import cosine_moments
from safecircuits.layers.similarity import unit_vectors

WHAT = "cosine of all pairs, mean and deviation"
LAYERS, WIDTH = 4, 256


def rows(quick: bool) -> list[Row]:
    """The matrix at 2,000 prompts, and how ours grows with them."""
    sizes = [200, 2_000, 20_000]
    vectors = unit_vectors(torch.randn(LAYERS, sizes[-1], WIDTH, generator=torch.Generator().manual_seed(0)))
    n = 1_000 if quick else 2_000
    few = vectors[:, :n]
    seconds = interleaved({"ours": lambda: cosine_moments(few), "matrix": lambda: pairwise(few)}, 3)
    equal = all(torch.allclose(a, b, atol=1e-9) for a, b in zip(cosine_moments(few), pairwise(few), strict=True))
    mine = [interleaved({"ours": lambda k=k: cosine_moments(vectors[:, :k])}, 3)["ours"] for k in sizes]
    return [
        faster(f"{WHAT}, {n:,} prompts", "pairwise matrix", seconds["ours"], seconds["matrix"], None, equal),
        growth(WHAT, "prompts", sizes, mine, 1.1),
    ]


def pairwise(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain way: every cosine, then their mean and deviation."""
    above = torch.triu_indices(u.shape[1], u.shape[1], 1)
    means, stds = [], []
    for layer in u:
        cosines = (layer @ layer.T)[above[0], above[1]]
        means.append(cosines.mean())
        stds.append(cosines.std(correction=0))
    return torch.stack(means), torch.stack(stds)
