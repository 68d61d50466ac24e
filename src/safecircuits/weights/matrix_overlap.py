"""How far safety and utility share a model's weights and directions, by layer and matrix (Wei et al. 2024, §4.3).

Weights: the Jaccard index of the top shares of both scores. Directions: the share that both leading spaces of what a
matrix writes have in common. Each beside what chance gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import COMPONENTS
from safecircuits.model.sites import ModelShape
from safecircuits.results.result import Result
from safecircuits.weights.choice import Within, choose_weights
from safecircuits.weights.scores import WeightScores, require_same_way
from safecircuits.weights.subspaces import OutputSpaces

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Measure = Literal["jaccard", "subspace"]


@dataclass(frozen=True)
class MatrixOverlap(Result):
    """Overlap of each matrix (``"3.q"``), between 0 and 1, and what two random choices of the same size would have.

    Examples:
        >>> safety, answers = (sc.weights.score_weights(model, d, components=["out"]) for d in (malicious, utility))
        >>> overlap = sc.weights.weight_overlap(safety, answers)
        >>> overlap.to_frame().shape
        (8, 1)
    """

    values: Mapping[str, float]
    chance: Mapping[str, float]
    measure: Measure
    shape: ModelShape
    provenance: dict[str, Any]
    chance_interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Where 95 % of such choices lie; empty in results of earlier versions."""

    def to_frame(self) -> pd.DataFrame:
        """Overlaps, one row a layer and one column a matrix."""
        import pandas as pd

        cells = {tuple(key.split(".")): value for key, value in self.values.items()}
        layers = sorted({int(layer) for layer, _ in cells})
        columns = [c for c in COMPONENTS if any(component == c for _, component in cells)]
        table = {c: [cells.get((str(layer), c), float("nan")) for layer in layers] for c in columns}
        return pd.DataFrame(table, index=pd.Index(layers, name="layer"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Overlap by layer, one line a matrix, with chance."""
        from safecircuits.plots.overlap import plot_overlap

        return plot_overlap(self.to_frame(), self.chance, self.measure, self.chance_interval, ax=ax)


@checked
def weight_overlap(
    safety: WeightScores, utility: WeightScores, share: float = 0.05, *, within: Within = "matrix"
) -> MatrixOverlap:
    """Jaccard index of the top ``share`` of weights by safety and by utility, matrix by matrix.

    Args:
        share: of the weights of a matrix, or of each of its rows (``within="row"``); 5 % in the paper.

    Raises:
        ValueError: for a share outside 0..1 or of no weight, and scores that do not belong together.

    Examples:
        >>> safety, answers = (sc.weights.score_weights(model, d, components=["out"]) for d in (malicious, utility))
        >>> overlap = sc.weights.weight_overlap(safety, answers, share=0.05)
        >>> sorted(overlap.values)[:2]
        ['0.out', '1.out']
    """
    require_same_way(safety, utility, "the utility scores")
    one, other = (choose_weights(s, share, within=within, lowest=False) for s in (safety, utility))
    if one.n_weights == 0:
        raise ValueError(f"a share of {share} is no weight at all")
    # Two random choices of a share f meet in f² of all weights, of 2f − f² that either has.
    shares = {key: float(mask.double().mean()) for key, mask in one.masks.items()}
    provenance = {
        "safety": safety.provenance,
        "utility": utility.provenance,
        "method": safety.method,
        "share": share,
        "within": within,
    }
    chance = {key: f / (2 - f) for key, f in shares.items()}
    intervals = {key: _jaccard_by_chance(mask, within) for key, mask in one.masks.items()}
    return MatrixOverlap(one.jaccard(other), chance, "jaccard", safety.shape, provenance, intervals)


def _jaccard_by_chance(mask: Bool[Tensor, "out in"], within: Within) -> tuple[float, float]:
    """Where 95 % of Jaccard indices lie when the other choice is any of as many weights of the matrix or of each row.

    What both have is hypergeometric, over rows a sum of such numbers, which is taken for normal.
    """
    from scipy.stats import hypergeom

    chosen = int(mask.sum())
    if within == "matrix":
        low, high = map(float, hypergeom(mask.numel(), chosen, chosen).interval(0.95))
    else:
        counts, rows = mask.sum(1).unique(return_counts=True)
        variances = [hypergeom.var(mask.shape[1], k, k) for k in counts.tolist()]
        mean = float((counts.double() ** 2 / mask.shape[1] * rows).sum())
        half = 1.96 * float((torch.tensor(variances).double() * rows).sum()) ** 0.5
        low, high = max(mean - half, 0.0), mean + half
    return low / (2 * chosen - low), high / (2 * chosen - high)


@checked
def space_overlap(safety: OutputSpaces, utility: OutputSpaces, rank: int) -> MatrixOverlap:
    """Share that the ``rank`` leading directions of safety and of utility have in common, matrix by matrix.

    Raises:
        ValueError: for spaces of another model, or of fewer directions than ``rank``.

    Examples:
        >>> safety, answers = (sc.weights.output_spaces(model, d, components=["o"]) for d in (malicious, utility))
        >>> overlap = sc.weights.space_overlap(safety, answers, rank=4)
        >>> overlap.chance["3.o"]
        0.03125
    """
    # A random direction has, squared, a rank/out of itself in any space of that rank.
    chance = {key: min(1.0, rank / basis.shape[0]) for key, basis in safety.bases.items()}
    provenance = {"safety": safety.provenance, "utility": utility.provenance, "rank": rank}
    intervals = {key: _space_by_chance(rank, basis.shape[0]) for key, basis in safety.bases.items()}
    return MatrixOverlap(safety.overlap(utility, rank), chance, "subspace", safety.shape, provenance, intervals)


def _space_by_chance(rank: int, out: int) -> tuple[float, float]:
    """Where 95 % of the shares lie that two random spaces of a rank have in common, taken for normal.

    The trace of the product of two random projections to r of d dimensions has the mean r²/d and the variance
    2 r² (d − r)² / (d² (d − 1) (d + 2)).
    """
    if rank >= out:
        return 1.0, 1.0
    half = 1.96 * (2.0 * (out - rank) ** 2 / (out**2 * (out - 1) * (out + 2))) ** 0.5
    return max(rank / out - half, 0.0), min(rank / out + half, 1.0)
