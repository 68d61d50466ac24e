"""Which weights to take by their scores: of a matrix, of each output row, or n of every m inputs; and as many random.

Wanda and SNIP prune within each output row (Wei et al. take the most important ones of a row instead), the set
difference within a matrix, and N:M sparsity within each group of m consecutive inputs of a row.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.weights.scores import WeightMask, WeightScores

Within = Literal["row", "matrix"]


@checked
def choose_weights(
    scores: WeightScores,
    share: float | None = None,
    *,
    n_of_m: tuple[int, int] | None = None,
    within: Within = "row",
    lowest: bool = True,
) -> WeightMask:
    """The lowest or highest weights of each row or matrix, or of each group of consecutive inputs.

    Args:
        share: how many weights of a row or matrix, between 0 and 1; or
        n_of_m: so many of every m consecutive inputs of a row; ``(2, 4)`` is what sparse hardware computes with.
        lowest: the least important ones, as for pruning; False for the most important ones, what safety rests on.

    Raises:
        ValueError: for both or none of ``share`` and ``n_of_m``, values out of range, inputs that m does not divide.

    Examples:
        >>> scores = sc.weights.score_weights(model, malicious, components=["out"])
        >>> mask = sc.weights.choose_weights(scores, 0.01, lowest=False)
        >>> round(mask.share, 3)
        0.01
    """
    if (share is None) == (n_of_m is None):
        raise ValueError("give either a share of the weights or n_of_m=(n, m)")
    if within not in get_args(Within):
        raise ValueError(f"within is 'row' or 'matrix', not {within!r}")
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"share is between 0 and 1, not {share}")
    if n_of_m is not None:
        require_n_of_m(n_of_m, {key: score.shape[1] for key, score in scores.scores.items()})

    def chosen(score: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        if n_of_m is not None:
            n, m = n_of_m
            return take(score.reshape(-1, m), n, lowest).reshape(score.shape)
        assert share is not None
        rows = score if within == "row" else score.reshape(1, -1)
        return take(rows, round(share * rows.shape[1]), lowest).reshape(score.shape)

    provenance = {
        "scores": scores.provenance,
        "method": scores.method,
        "tokens": scores.tokens,
        "share": share,
        "n_of_m": None if n_of_m is None else list(n_of_m),
        "within": within if n_of_m is None else None,
        "lowest": lowest,
    }
    return WeightMask({key: chosen(score) for key, score in scores.scores.items()}, scores.shape, provenance)


@checked
def random_weights(like: WeightMask, seed: int = 0) -> WeightMask:
    """The control: as many weights of each matrix as ``like`` has, drawn without replacement.

    Examples:
        >>> scores = sc.weights.score_weights(model, malicious, components=["out"])
        >>> mask = sc.weights.choose_weights(scores, 0.01, lowest=False)
        >>> sc.weights.random_weights(mask, seed=1).n_weights == mask.n_weights
        True
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(mask: Bool[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        picked = torch.zeros(mask.numel(), dtype=torch.bool)
        picked[torch.randperm(mask.numel(), generator=generator)[: int(mask.sum())]] = True
        return picked.reshape(mask.shape)

    masks = {key: drawn(mask) for key, mask in like.masks.items()}
    return WeightMask(masks, like.shape, {"random_like": like.provenance, "seed": seed})


def take(rows: Float[Tensor, "row entry"], n: int, lowest: bool) -> Bool[Tensor, "row entry"]:
    """The ``n`` lowest or highest entries of each row; of equals the first."""
    order = rows.argsort(dim=1, descending=not lowest, stable=True)[:, :n]
    return torch.zeros(rows.shape, dtype=torch.bool, device=rows.device).scatter_(1, order, True)


def require_n_of_m(n_of_m: tuple[int, int], inputs: dict[str, int]) -> None:
    """A ValueError unless n of every m inputs can be taken of each of these matrices."""
    n, m = n_of_m
    if not 0 < n < m:
        raise ValueError(f"n_of_m is (n, m) with 0 < n < m, not {n_of_m}")
    for key, count in inputs.items():
        if count % m:
            raise ValueError(f"matrix {key} has {count} inputs, which groups of {m} do not divide")
