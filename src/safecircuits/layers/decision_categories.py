"""Decision layers by category of the malicious prompts: a curve and a range for each, or why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.grouping import rows_by
from safecircuits.base.paired import LEVEL
from safecircuits.base.resamples import DRAWS, RangeResamples, multiplicities
from safecircuits.base.stats import Share, canonical_order, half_width, simultaneous_band
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.verdict_table import Verdicts, counts_beside

if TYPE_CHECKING:
    import pandas as pd

LEAST = 4
"""Pairs of which Fisher's exact test can tell refusals from noise at all: four of four against none of four."""


class Rule(Protocol):
    """How a range is read off a curve."""

    def range(self, share: Sequence[float], low: Sequence[float] | None = None) -> LayerRange: ...


@dataclass(frozen=True)
class CategoryDecision:
    """The pairs whose malicious prompts are of one category.

    Attributes:
        n: pairs.
        why: why nothing is said of the layers; empty where it is. All that follows is None then.
        layers: those that decide.
        share, low, high: as of ``DecisionLayers``, for these pairs alone.
        resampled: what the rule says of resampled pairs of the category.

    Examples:
        >>> kinds = sc.PromptSet("kinds", malicious.prompts, categories=("theft",) * 6 + ("fraud",) * 2)
        >>> found = sc.decision_layers(model, normal, kinds).by_category
        >>> found["theft"].n, found["fraud"].why
        (6, '2 pairs are too few: at least 4 tell refusing these from noise')
    """

    n: int
    why: str = ""
    layers: LayerRange | None = None
    share: Float[Tensor, " layer"] | None = None
    low: Float[Tensor, " layer"] | None = None
    high: Float[Tensor, " layer"] | None = None
    resampled: RangeResamples | None = None


def decisions_by_category(
    rule: Rule,
    effect: Float[Tensor, "layer pair"],
    full: Float[Tensor, " pair"],
    malicious: Verdicts,
    normal_refused: Bool[Tensor, " pair"],
) -> dict[str, CategoryDecision]:
    """Of each category of the malicious prompts, in the order in which they first occur; empty without categories."""
    return {
        kind: _decision(rule, effect[:, those], full[those], malicious.refused[those], normal_refused[those])
        for kind, those in rows_by(malicious.categories).items()
    }


def _decision(
    rule: Rule,
    effect: Float[Tensor, "layer pair"],
    full: Float[Tensor, " pair"],
    malicious: Bool[Tensor, " pair"],
    normal: Bool[Tensor, " pair"],
) -> CategoryDecision:
    n = len(full)
    if n < LEAST:
        return CategoryDecision(n, f"{n} pair{'s are' if n > 1 else ' is'} too few: at least {LEAST} {_NOISE}")
    if not full.isfinite().all():
        return CategoryDecision(n, "nothing was measured, as the model does not refuse more than harmless prompts")
    if not refuses_more(malicious, normal):
        refused = int(malicious.sum()), int(normal.sum())
        return CategoryDecision(
            n, f"{refused[0]} of {n} are refused, and {refused[1]} of the harmless ones beside them, within noise"
        )
    if full.mean() <= 0:
        return CategoryDecision(n, "the first answer token does not tell these prompts from harmless ones")
    curves = resampled_share(effect, full)
    share = effect.mean(1) / full.mean()
    low, high = simultaneous_band(share, curves)
    layers = rule.range(share.tolist(), low.tolist())
    return CategoryDecision(n, "", layers, share, low, high, ranges_of(rule, curves))


_NOISE = "tell refusing these from noise"


def categories_frame(found: Mapping[str, CategoryDecision], malicious: Verdicts) -> pd.DataFrame:
    """One row a category: what its answers are, the layers, how often resamples name just these; or why there are none.

    ``refused`` with its 95 % interval ``low`` to ``high`` is a share of ``n``; what stands beside it, numbers.
    """
    import pandas as pd

    rows = []
    for kind, one in found.items():
        tally = malicious.by_category[kind]
        share = tally.share("refuses")
        low, high = share.interval
        row: dict[str, Any] = {"category": kind, "n": one.n, "refused": share.rate, "low": low, "high": high}
        row |= counts_beside(tally)
        ends = (None, None) if one.layers is None else tuple(one.layers)
        often = None if one.resampled is None else one.resampled.share(one.layers)
        rows.append({**row, "first": ends[0], "last": ends[1], "resamples": often, "why_none": one.why or None})
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.astype({"first": "Int64", "last": "Int64"})


def curves_frame(found: Mapping[str, CategoryDecision]) -> pd.DataFrame:
    """One row a category that has layers, and layer: ``share`` with its band ``low`` to ``high``, and if it decides."""
    import pandas as pd

    return pd.DataFrame([row for kind, one in found.items() for row in _curve(kind, one)])


def _curve(kind: str, one: CategoryDecision) -> Iterator[dict[str, Any]]:
    if one.layers is None or one.share is None or one.low is None or one.high is None:
        return
    values = zip(one.share.tolist(), one.low.tolist(), one.high.tolist(), strict=True)
    for layer, (share, low, high) in enumerate(values):
        row = {"category": kind, "n": one.n, "layer": layer, "share": share, "low": low, "high": high}
        yield {**row, "decides": layer in one.layers}


def refuses_more(malicious: Bool[Tensor, " prompt"], normal: Bool[Tensor, " prompt"]) -> bool:
    """Whether the one kind is refused more often than the other, by Fisher's exact test."""
    from scipy.stats import fisher_exact

    a, b = Share.of(malicious), Share.of(normal)
    p = float(fisher_exact([[a.hits, a.n - a.hits], [b.hits, b.n - b.hits]]).pvalue)
    return a.rate > b.rate and p < LEVEL


def resampled_share(effect: Float[Tensor, "layer pair"], full: Float[Tensor, " pair"]) -> Float[Tensor, "draw layer"]:
    """The share of each layer over resampled pairs, whatever the order in which they are given."""
    order = canonical_order(torch.cat([full[None], effect]).T.tolist())
    effect, full = effect[:, order], full[order]
    weights = multiplicities(len(full), DRAWS, torch.Generator().manual_seed(0)).to(effect.dtype)
    return (weights @ effect.T) / (weights @ full)[:, None]


def ranges_of(rule: Rule, curves: Float[Tensor, "draw layer"]) -> RangeResamples:
    """What a rule says of resampled curves, each with the width of the band around all of them."""
    half = half_width(curves)
    return RangeResamples(tuple(rule.range(curve.tolist(), (curve - half).tolist()) for curve in curves))
