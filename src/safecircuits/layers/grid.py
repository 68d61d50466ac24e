"""Every block of layers scaled and counted: what the bound-by-bound search can miss, since counts are not unimodal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.paired import LEVEL
from safecircuits.base.resamples import RangeResamples
from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.by_category import points_by_category
from safecircuits.layers.choice import (
    NOTHING_MOVED,
    against_unscaled,
    best_against,
    moves,
    resampled_best,
    rivals_of,
    tell_if_nothing_can_move,
)
from safecircuits.layers.counting import CountingOptions, RefusalCounter, checked_alpha
from safecircuits.layers.sweep_point import SweepPoint, counted
from safecircuits.model.sites import HookedModel, require_hooked
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ScalingGrid(Result):
    """The count of every block (first, last), and of the model as it is.

    Examples:
        >>> grid = sc.scaling_grid(model, over_rejection, alpha=1.2, max_length=1)
        >>> grid.counts.shape
        torch.Size([8, 8])
    """

    alpha: float
    baseline: SweepPoint
    points: tuple[SweepPoint, ...]
    n_layers: int
    provenance: dict[str, Any]
    kl: Float[Tensor, "*first last"] = field(default_factory=lambda: torch.empty(0))
    """Mean first-token KL to the unscaled model on ordinary prompts, in nats, by first and last layer; NaN where there
    is no block, and no entries where it was not measured."""

    @property
    def counts(self) -> Int[Tensor, "first last"]:
        """Refusals by first and last layer of the block; -1 where there is no block or it was not counted."""
        counts = torch.full((self.n_layers, self.n_layers), -1)
        for point in self.points:
            assert point.layers is not None
            counts[point.layers.first, point.layers.last] = point.count
        return counts

    @property
    def best(self) -> SweepPoint:
        """The extreme: most refusals for α > 1, fewest for α < 1; of equals the shortest block, then the earliest."""
        extreme = max if self.alpha > 1 else min
        return extreme(self._shortest_first, key=lambda point: point.count)

    @property
    def _shortest_first(self) -> list[SweepPoint]:
        def order(point: SweepPoint) -> tuple[int, int]:
            assert point.layers is not None
            return len(point.layers), point.layers.first

        return sorted(self.points, key=order)

    @cached_property
    def resampled(self) -> RangeResamples:
        """How sure the best block is: which is the best when prompts are resampled."""
        best = resampled_best(self._shortest_first, self.alpha > 1)
        return RangeResamples(tuple(point.layers for point in best))

    @cached_property
    def rivals(self) -> tuple[SweepPoint, ...]:
        """Blocks that may as well be the best: with it they hold the true best in 95 % of cases."""
        return rivals_of(self.best, self.points)

    @cached_property
    def p(self) -> float:
        """p-value of the best block against scaling nothing: exact, and corrected for all blocks (``chosen_p``)."""
        return best_against(self.best, self.points, self.baseline)

    @property
    def located(self) -> bool:
        """Whether the best block moves refusals the way α should, beyond what the best of so many does by chance."""
        return self.p < LEVEL and moves(self.best, self.baseline, self.alpha > 1)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        best, up = self.best, self.alpha > 1
        block = f"layers {best.layers} at alpha {self.alpha:g} ({self.resampled.words(best.layers)}): "
        block += counted(best, self.baseline)
        if nothing := against_unscaled(self.p, len(self.points), moves(best, self.baseline, up), up):
            return f"{block}; {nothing}"
        return f"{block}; {len(self.rivals)} of {len(self.points) - 1} other blocks are within noise of it"

    @property
    def caveat(self) -> str:
        """What to hold against it first; empty if the block is sure."""
        if not self.located:
            return NOTHING_MOVED.format(layers=self.best.layers)
        if self.rivals:
            return f"layers {self.best.layers} are one of {len(self.rivals) + 1} blocks that do as well, within noise"
        return self.resampled.doubt(self.best.layers)

    def to_frame(self) -> pd.DataFrame:
        """Counts as a table: rows are first layers, columns last layers; empty where there is no block."""
        import pandas as pd

        frame = pd.DataFrame(self.counts.tolist())
        frame.index.name, frame.columns.name = "first", "last"
        return frame.where(frame >= 0)

    def categories(self) -> pd.DataFrame:
        """One row a block, the unscaled model first, and category of its prompts; none without categories."""
        return points_by_category([({}, point) for point in (self.baseline, *self.points)], "over_rejection")

    def record(self) -> dict[str, Any]:
        """``counts`` by first and last layer, ``baseline_refused`` of ``n_prompts``, ``best``, rivals, resamples."""
        best = self.best.layers
        return {
            "counts": self.counts.numpy(),
            "baseline_refused": self.baseline.count,
            "n_prompts": len(self.baseline.refused),
            "best": list(best or ()),
            "resamples": self.resampled.record(best),
            **self.baseline.record(),
            "rivals": [list(point.layers or ()) for point in self.rivals],
            **({"ordinary_first_token_kl": self.kl.numpy()} if self.kl.numel() else {}),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """A heat map of refusals against the unscaled model's; a large mark at the extreme, small ones at rivals."""
        from safecircuits.plots.grid import plot_grid

        return plot_grid(self, ax=ax)


@checked
def scaling_grid(
    model: HookedModel,
    over_rejection: PromptSet | Sequence[str],
    *,
    alpha: float,
    max_length: int | None = None,
    progress: bool = False,
    **counting: Unpack[CountingOptions],
) -> ScalingGrid:
    """Scale every block of layers by ``alpha`` and count over-refusals (Safety Layers §3.4, without the search).

    n(n+1)/2 configurations for n layers; ``max_length`` leaves out longer blocks. ``resume`` names a file that lets an
    interrupted run go on. The other arguments are those of ``localize``.

    Examples:
        >>> grid = sc.scaling_grid(model, over_rejection, alpha=1.2, max_length=2)
        >>> len(grid.points)
        15
        >>> grid.best.layers
        LayerRange(first=..., last=...)
    """
    require_hooked(model, "scaling layers")
    alpha = checked_alpha(alpha)
    n_layers = int(model.cfg.n_layers)
    longest = n_layers if max_length is None else max_length
    if not 1 <= longest <= n_layers:
        raise ValueError(f"max_length is between 1 and the model's {n_layers} layers, not {max_length}")
    prompts = as_prompt_set(over_rejection, "over-rejection")
    counter = RefusalCounter(model, prompts, **counting)
    tell_if_nothing_can_move(counter.baseline, alpha > 1)
    blocks = [
        LayerRange(first, last) for first in range(n_layers) for last in range(first, min(n_layers, first + longest))
    ]
    configurations = [(block, alpha) for block in blocks]
    points = counter.count_all(configurations, what=f"grid, alpha {alpha:g}", progress=progress)
    kl = torch.empty(0)
    if counter.reference is not None:
        kl = torch.full((n_layers, n_layers), torch.nan, dtype=torch.float64)
        for block, point in zip(blocks, points, strict=True):
            assert point.kl is not None
            kl[block.first, block.last] = point.kl
    return ScalingGrid(alpha, counter.baseline, tuple(points), n_layers, counter.provenance, kl)
