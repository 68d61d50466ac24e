"""What came of one scaled configuration: which prompts are refused, and what stands beside that count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.counted import answers_name, beside
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.categories import Counted, refused_by_category
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.verdict_table import Tally


@dataclass(frozen=True)
class SweepPoint:
    """One configuration: which prompts were refused with ``layers`` scaled by ``alpha`` (None: the model as it is).

    Examples:
        >>> counter = sc.layers.RefusalCounter(model, over_rejection)
        >>> point = counter.count(sc.LayerRange(3, 5), alpha=1.2)
        >>> point.layers, point.alpha, point.refused.shape
        (LayerRange(first=3, last=5), 1.2, torch.Size([8]))
    """

    layers: LayerRange | None
    alpha: float
    refused: Bool[Tensor, " prompt"]
    degenerate: float
    """Share of completions that are empty or one thing over and over: an over-scaled model."""
    completions: Completions
    tally: Tally | None = None
    """What the completions are; None where they end early for a verdict's sake, and in files of earlier versions."""
    kinds: Mapping[str, Tally] = field(default_factory=dict)
    """The same by category of the prompts, where they have categories."""
    kl: float | None = None
    """Mean first-token KL to the unscaled model on ordinary prompts, in nats, where it was measured."""

    @property
    def count(self) -> int:
        return int(self.refused.sum())

    @property
    def by_category(self) -> dict[str, Counted]:
        """What is refused by category of the prompts; empty without categories."""
        return refused_by_category(self.refused, self.completions.prompts.categories, self.kinds)

    @property
    def at_limit(self) -> float:
        """Share of completions that the limit of tokens ended, and not the model; NaN where that is not known."""
        ended = self.completions.ended
        return float("nan") if ended is None else ended.count(False) / len(ended)

    def record(self) -> dict[str, Any]:
        """What stands beside the count: ``n``, and the shares ``incoherent`` and ``cut``, NaN where not known; the KL.

        ``answers`` names the completions, by which a report leads to them.
        """
        name = answers_name(self.completions.prompts.ids, self.completions.texts, self.refused.tolist())
        strange = float("nan") if self.tally is None else self.tally.incoherent / self.tally.n
        far = {} if self.kl is None else {"ordinary_first_token_kl": self.kl}
        return {"n": len(self.refused), "incoherent": strange, "cut": self.at_limit, **far, "answers": name}


def counted(best: SweepPoint, unscaled: SweepPoint) -> str:
    """``9 of 16 refused (0 % incoherent, …), 4 unscaled (…)``: both counts with what stands beside them."""
    ours, theirs = (beside(point.record(), "refused") for point in (best, unscaled))
    return f"{best.count} of {len(best.refused)} refused{ours}, {unscaled.count} unscaled{theirs}"
