"""By category of prompts: the gap of those of one category of harm to harmless ones, and counts of scaled blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.grouping import rows_by
from safecircuits.base.notices import notify
from safecircuits.behavior.categories import category_frame
from safecircuits.hooks.collect import Residuals
from safecircuits.layers.angles import Formula
from safecircuits.layers.interval import interval_of
from safecircuits.layers.onset import OnsetRule
from safecircuits.layers.similarity import Pairs, compare
from safecircuits.layers.sweep_point import SweepPoint

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CategoryGap:
    """The gap of the ``n`` harmful prompts of one category, degrees by layer, with its 95 % bootstrap interval.

    Examples:
        >>> import torch
        >>> gap = torch.tensor([0.5, 8.0])
        >>> sc.layers.CategoryGap(20, gap, gap - 1, gap + 1).n
        20
    """

    n: int
    gap_deg: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]


@checked
def category_gaps(
    normal: Residuals,
    malicious: Residuals,
    *,
    pairs: Pairs = "all",
    formula: Formula = "paper",
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, CategoryGap]:
    """``compare`` of the normal prompts with the malicious ones of each category; empty without categories.

    A category with a single prompt has no pair of two, and is left out with a notice.

    Args:
        pairs, formula, draws, seed: as in ``compare``.

    Examples:
        >>> kinds = sc.PromptSet("kinds", malicious.prompts[:4], categories=("theft", "theft", "fraud", "fraud"))
        >>> harmless, harmful = (sc.collect_residuals(model, prompts) for prompts in (normal, kinds))
        >>> {kind: gap.n for kind, gap in sc.layers.category_gaps(harmless, harmful).items()}
        {'theft': 2, 'fraud': 2}
    """
    rows = rows_by(malicious.prompts.categories)
    if single := [kind for kind, those in rows.items() if len(those) < 2]:
        notify(f"no gap of {', '.join(map(repr, single))}: a category needs two prompts for a pair of them")
    found = {}
    for kind, those in rows.items():
        if len(those) < 2:
            continue
        of_kind = Residuals(malicious.values[:, those], malicious.layers, malicious.prompts.subset(those))
        gap = compare(normal, of_kind, pairs=pairs, formula=formula, draws=draws, seed=seed)
        assert gap.resampled is not None
        interval = interval_of(gap.resampled, OnsetRule())
        found[kind] = CategoryGap(len(those), gap.gap_deg, interval.low, interval.high)
    return found


def category_gaps_frame(found: Mapping[str, Mapping[str, CategoryGap]]) -> pd.DataFrame:
    """Of gaps by model and category one row a model, category and layer: ``n``, ``gap_deg``, ``low`` and ``high``."""
    import pandas as pd

    rows = [
        {"model": model, "category": kind, "n": gap.n, "layer": layer, "gap_deg": value, "low": low, "high": high}
        for model, gaps in found.items()
        for kind, gap in gaps.items()
        for layer, (value, low, high) in enumerate(
            zip(gap.gap_deg.tolist(), gap.low.tolist(), gap.high.tolist(), strict=True)
        )
    ]
    return pd.DataFrame(rows)


def points_by_category(found: Iterable[tuple[Mapping[str, Any], SweepPoint]], of: str) -> pd.DataFrame:
    """One row a configuration and category of its prompts (``category_frame``); none without categories.

    Args:
        found: what else a row says, and the configuration.
        of: the kind of prompts, such as ``"over_rejection"``.
    """
    rows = []
    for beside_it, point in found:
        first, last = point.layers or (None, None)
        rows.append(({**beside_it, "first": first, "last": last, "alpha": point.alpha}, {of: point.by_category}))
    frame = category_frame(rows, ["first", "last", "alpha"])
    return frame.astype({"first": "Int64", "last": "Int64"})
