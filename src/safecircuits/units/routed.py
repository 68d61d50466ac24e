"""Statistics of experts' neurons: over the tokens that are routed to the expert, of which there may be none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.units.moments import Moments


@dataclass(frozen=True)
class RoutedMoments(Moments):
    """Moments of experts' neurons, each over the tokens of its own expert; zero where it got none.

    Examples:
        >>> import torch
        >>> neurons = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]], [[8.0, 8.0]]])  # [token top_k d_expert]
        >>> moments = sc.units.RoutedMoments.at_experts(neurons, torch.tensor([[0], [0], [2]]), n_experts=3)
        >>> moments.routed.tolist(), moments.mean.tolist(), moments.variance.tolist()
        ([2, 0, 1], [2.0, 2.0, 0.0, 0.0, 8.0, 8.0], [2.0, 8.0, 0.0, 0.0, 0.0, 0.0])
    """

    routed: Int[Tensor, "... expert"]
    """How many of the ``count`` tokens went to each expert."""

    @classmethod
    def at_experts(
        cls, neurons: Float[Tensor, "token top_k d_expert"], index: Int[Tensor, "token top_k"], n_experts: int
    ) -> RoutedMoments:
        """Of some tokens' neurons at the experts that ``index`` names, in float64."""
        rows, expert = neurons.flatten(0, 1).double(), index.flatten()
        routed = torch.bincount(expert, minlength=n_experts)
        n = routed.clamp(min=1)[:, None]
        none = torch.zeros(n_experts, rows.shape[1], dtype=torch.float64, device=rows.device)
        mean = none.index_add(0, expert, rows) / n
        m2 = none.index_add(0, expert, (rows - mean[expert]).square())
        return cls(len(neurons), mean.flatten(), m2.flatten(), routed)

    def cpu(self) -> Self:
        """The same on the CPU."""
        return replace(self, mean=self.mean.cpu(), m2=self.m2.cpu(), routed=self.routed.cpu())

    def times(self, copies: int) -> RoutedMoments:
        """Of the same tokens met ``copies`` times."""
        return RoutedMoments(self.count * copies, self.mean, self.m2 * copies, self.routed * copies)

    def merge(self, other: Moments) -> RoutedMoments:
        """Of both together, expert by expert."""
        assert isinstance(other, RoutedMoments)
        mine, theirs = self._per_channel, other._per_channel
        all_of_it = (mine + theirs).clamp(min=1)
        delta = other.mean - self.mean
        mean = self.mean + delta * (theirs / all_of_it)
        m2 = self.m2 + other.m2 + delta.square() * (mine * theirs / all_of_it)
        return RoutedMoments(self.count + other.count, mean, m2, self.routed + other.routed)

    @property
    def _per_channel(self) -> Float[Tensor, "... channel"]:
        return self.routed.double().repeat_interleave(self.mean.shape[-1] // self.routed.shape[-1], -1)

    @property
    def variance(self) -> Float[Tensor, "... channel"]:
        """Sample variance (ddof 1); 0 of an expert that got fewer than two tokens."""
        return self.m2 / (self._per_channel - 1).clamp(min=1)

    @property
    def mean_square(self) -> Float[Tensor, "... channel"]:
        return self.mean.square() + self.m2 / self._per_channel.clamp(min=1)


def stacked_routed(layers: Sequence[RoutedMoments]) -> RoutedMoments:
    """Moments of one layer after the other as those of ``[layer, channel]``, on the CPU."""
    rows = [layer.cpu() for layer in layers]
    mean, m2, routed = (torch.stack([getattr(row, key) for row in rows]) for key in ("mean", "m2", "routed"))
    return RoutedMoments(rows[0].count, mean, m2, routed)


def said(moments: Moments, layers: Sequence[int]) -> str:
    """What a verdict says of the tokens of experts; nothing of other units."""
    if not isinstance(moments, RoutedMoments):
        return ""
    routed = moments.routed[list(layers)].flatten()
    none, one, n = int((routed == 0).sum()), int((routed == 1).sum()), len(routed)
    if not none + one:
        return f"; each of the {n} experts over the tokens routed to it, {int(routed.min())} to {int(routed.max())}"
    return (
        f"; of the {n} experts, each over the tokens routed to it, {none} got no token and {one} a single one: what "
        "they do cannot be known from this data, and their score is that of a unit that does nothing"
    )
