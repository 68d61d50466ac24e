"""Streaming mean and variance of many channels, merged exactly in any order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

_FEW = 64


@dataclass(frozen=True)
class Moments:
    """Streaming count, mean and summed squared deviation of many channels; merging is exact up to rounding.

    Examples:
        >>> import torch
        >>> moments = sc.units.Moments.of(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        >>> moments.mean.tolist(), moments.variance.tolist()
        ([2.0, 2.0], [2.0, 0.0])
    """

    count: int
    mean: Float[Tensor, "... channel"]
    m2: Float[Tensor, "... channel"]

    @classmethod
    def of(cls, x: Float[Tensor, "row channel"]) -> Moments:
        """Moments of some rows (tokens or prompts): float64 sums over a few rows' deviations from about their mean.

        Deviations keep the rows' own precision, at least float32, which loses nothing against float64 from the start
        and takes a tenth of the time.
        """
        x = x if x.dtype == torch.float64 else x.float()
        about = x[:_FEW].mean(0)
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        squares = total.clone()
        # A processor's caches hold a few rows at a time; a GPU wants them all.
        for part in torch.split(x, _FEW if x.device.type == "cpu" else max(len(x), 1)):
            away = part - about
            total += away.sum(0, dtype=None if len(part) <= _FEW else torch.float64)
            squares += away.square_().sum(0, dtype=None if len(part) <= _FEW else torch.float64)
        return cls(len(x), about + total / len(x), (squares - total.square() / len(x)).clamp(min=0))

    def cpu(self) -> Self:
        """The same on the CPU."""
        return replace(self, mean=self.mean.cpu(), m2=self.m2.cpu())

    def times(self, copies: int) -> Moments:
        """Moments of the same rows met ``copies`` times."""
        return Moments(self.count * copies, self.mean, self.m2 * copies)

    def merge(self, other: Moments) -> Moments:
        """Moments of both together (Chan, Golub and LeVeque's update)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, m2)

    @property
    def variance(self) -> Float[Tensor, "... channel"]:
        """Sample variance (ddof 1)."""
        return self.m2 / max(self.count - 1, 1)

    @property
    def mean_square(self) -> Float[Tensor, "... channel"]:
        return self.mean.square() + self.m2 / self.count


@dataclass(frozen=True)
class Comoments:
    """The same of heads: count, mean, and summed outer products of each head's deviations, ``d_head × d_head``."""

    count: int
    mean: Float[Tensor, "... head d_head"]
    m2: Float[Tensor, "... head d_head d_head"]

    @classmethod
    def of(cls, x: Float[Tensor, "row head d_head"]) -> Comoments:
        """Of some rows, in float64."""
        x = x.double()
        away = x - x.mean(0)
        return cls(len(x), x.mean(0), torch.einsum("rhi,rhj->hij", away, away))

    def cpu(self) -> Self:
        """The same on the CPU."""
        return replace(self, mean=self.mean.cpu(), m2=self.m2.cpu())

    def times(self, copies: int) -> Comoments:
        """Of the same rows met ``copies`` times."""
        return Comoments(self.count * copies, self.mean, self.m2 * copies)

    def merge(self, other: Comoments) -> Comoments:
        """Of both together."""
        count = self.count + other.count
        delta = other.mean - self.mean
        outer = delta[..., :, None] * delta[..., None, :]
        mean = self.mean + delta * (other.count / count)
        return Comoments(count, mean, self.m2 + other.m2 + outer * (self.count * other.count / count))

    @property
    def covariance(self) -> Float[Tensor, "... head d_head d_head"]:
        """Sample covariance (ddof 1)."""
        return self.m2 / max(self.count - 1, 1)


K = TypeVar("K")
M = TypeVar("M", Moments, Comoments)


def merged(parts: Iterable[Mapping[K, M]]) -> dict[K, M]:
    """Moments by key of parts of the data together, on the CPU, where those of several processes meet."""
    found: dict[K, M] = {}
    for part in parts:
        for key, moments in part.items():
            found[key] = found[key].merge(moments) if key in found else moments
    return found


def stacked(layers: Sequence[Moments]) -> Moments:
    """Moments of one layer after the other as those of ``[layer, channel]``, on the CPU."""
    mean = torch.stack([m.mean for m in layers]).cpu()
    return Moments(layers[0].count, mean, torch.stack([m.m2 for m in layers]).cpu())


class RunningMoments:
    """Moments by key, updated as rows arrive."""

    def __init__(self, by_key: Mapping[tuple[str, int], Moments] | None = None) -> None:
        self.by_key: dict[tuple[str, int], Moments] = dict(by_key or {})

    def add(self, site: str, layer: int, rows: Float[Tensor, "row channel"], where: str) -> None:
        """Merge further rows in.

        Raises:
            FloatingPointError: if they are not finite; ``where`` names what they are.
        """
        moments = Moments.of(rows)
        if not torch.isfinite(moments.m2).all():
            raise FloatingPointError(f"{where} are not finite")
        before = self.by_key.get((site, layer))
        self.by_key[site, layer] = moments if before is None else before.merge(moments)

    def stack(self, site: str, n_layers: int) -> Moments:
        """All layers of a site."""
        return stacked([self.by_key[site, layer] for layer in range(n_layers)])
