"""Cosine and angle over pairs of prompts, at every layer: all pairs exactly, or those that the paper draws.

Over all pairs the mean cosine and its standard deviation have closed forms in the unit vectors u, linear in the number
of prompts: the mean is the norm of their sum, the second moment the Frobenius norm of their second-moment matrix. The
mean angle has none, so angles are averaged exactly, in chunks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.layers.angles import degrees

# The authors' code draws r = 500 pairs of each type, each draw with its own seed counted up from these.
PAPER_DRAWS = 500
PAPER_SEEDS = {"nn": 10, "mm": 100, "nm": 1000}


@dataclass(frozen=True)
class PairCurve:
    """Cosine similarity of one type of pair: mean and standard deviation over pairs, and the mean angle in degrees.

    Examples:
        >>> curve = sc.layer_gap(model, normal, malicious).nn
        >>> curve.mean.shape, curve.angle_deg.shape
        (torch.Size([8]), torch.Size([8]))
    """

    mean: Float[Tensor, " layer"]
    std: Float[Tensor, " layer"]
    angle_deg: Float[Tensor, " layer"]

    @classmethod
    def of(cls, cosines: Float[Tensor, "layer pair"]) -> PairCurve:
        """The statistics of given pairs; the standard deviation is that of these pairs (ddof 0)."""
        return cls(cosines.mean(-1), cosines.std(-1, correction=0), degrees(cosines).mean(-1))


def paper_pairs(kind: Literal["nn", "mm", "nm"], n_normal: int, n_malicious: int) -> Int[Tensor, "draw 2"]:
    """The authors' pairs by prompt index: one ``random.seed`` a draw, so file order matters."""
    generator = random.Random()
    drawn = []
    for draw in range(PAPER_DRAWS):
        generator.seed(PAPER_SEEDS[kind] + draw)
        if kind == "nm":
            drawn.append([generator.sample(range(n_normal), 1)[0], generator.sample(range(n_malicious), 1)[0]])
        else:
            drawn.append(generator.sample(range(n_normal if kind == "nn" else n_malicious), 2))
    return torch.tensor(drawn)


def sampled(n: Tensor, m: Tensor, kind: Literal["nn", "mm", "nm"]) -> PairCurve:
    """The paper's draws of one kind of pairs."""
    first, second = paper_pairs(kind, n.shape[1], m.shape[1]).unbind(-1)
    left = m if kind == "mm" else n
    right = n if kind == "nn" else m
    return PairCurve.of((left[:, first] * right[:, second]).sum(-1))


def all_within(u: Float[Tensor, "layer prompt d_model"]) -> PairCurve:
    """All unordered pairs of distinct prompts: everything against everything, less each prompt with itself."""
    pairs = u.shape[1] * (u.shape[1] - 1)
    angles = _angle_sums(u, u) / pairs  # a prompt's angle with itself is zero
    return PairCurve(*cosine_moments(u), angles)


def all_across(u: Float[Tensor, "layer a d_model"], v: Float[Tensor, "layer b d_model"]) -> PairCurve:
    """Every vector of one set with every one of the other."""
    return PairCurve(*cosine_moments(u, v), _angle_sums(u, v) / (u.shape[1] * v.shape[1]))


def cosine_moments(
    u: Float[Tensor, "layer a d_model"], v: Float[Tensor, "layer b d_model"] | None = None
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """Mean and standard deviation of the cosine over all pairs of unit vectors, at a cost linear in their number.

    Pairs are of one vector of ``u`` and one of ``v``, or without ``v`` of two distinct ones of ``u``.
    """
    w = u if v is None else v
    itself = u.shape[1] if v is None else 0  # each vector with itself, a cosine of 1
    pairs = u.shape[1] * w.shape[1] - itself
    first = ((u.sum(1) * w.sum(1)).sum(-1) - itself) / pairs
    second = (_second_moment_product(u, w) - itself) / pairs
    return first, (second - first.square()).clamp(min=0).sqrt()


def _second_moment_product(u: Tensor, v: Tensor) -> Float[Tensor, " layer"]:
    """Σ over pairs of cos² = ⟨UᵀU, VᵀV⟩, one layer at a time; the Gram side is used where prompts are fewer."""
    if max(u.shape[1], v.shape[1]) <= u.shape[2]:
        return torch.stack([(a @ b.T).square().sum() for a, b in zip(u, v, strict=True)])
    if v is u:
        return torch.stack([(a.T @ a).square().sum() for a in u])
    return torch.stack([((a.T @ a) * (b.T @ b)).sum() for a, b in zip(u, v, strict=True)])


def _angle_sums(u: Tensor, v: Tensor, chunk: int = 1024) -> Float[Tensor, " layer"]:
    """Σ over pairs of the angle in degrees, exact, ``chunk`` prompts against all at a time."""
    same = u is v
    total = torch.zeros(u.shape[0], dtype=torch.float64)
    for layer, (a, b) in enumerate(zip(u, v, strict=True)):
        for start in range(0, len(a), chunk):
            angles = degrees(a[start : start + chunk] @ b.T)
            if same:  # arccos magnifies the rounding of a vector's product with itself
                rows = torch.arange(len(angles))
                angles[rows, rows + start] = 0.0
            total[layer] += angles.sum()
    return total
