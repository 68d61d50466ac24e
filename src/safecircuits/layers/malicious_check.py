"""The AdvBench check: how many malicious queries a model still answers with a layer range scaled (Safety Layers §3.4).

The paper's Llama-3 answers 29 of 520, and 9 with its layers 7 to 12 scaled by 1.2. It answers 9 with [6, 12] as well:
so few are answered at all that the count cannot tell ranges apart, which is why over-rejections locate them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.counted import Beside
from safecircuits.base.notices import notify
from safecircuits.base.paired import LEVEL, paired_difference, paired_p
from safecircuits.base.stats import Share
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.coherence import unlikely_answers
from safecircuits.behavior.verdict import verdicts
from safecircuits.layers.by_category import points_by_category
from safecircuits.layers.counting import CountingOptions, RefusalCounter, checked_alpha
from safecircuits.layers.sweep_point import SweepPoint
from safecircuits.model.sites import HookedModel, require_hooked
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class MaliciousCheck(Result):
    """Malicious queries that are answered (neither refused nor by word salad), before and after scaling.

    Attributes:
        incoherent: which completions are none, before and after, by their words and to the unscaled model by their
            tokens; None in files of earlier versions.

    Examples:
        >>> check = sc.layers.answered_malicious(model, malicious, (3, 5), alpha=1.2)
        >>> before, after = check.answered
        >>> print(before)
        0.0 % [0.0, 32.4] (0/8)
    """

    before: SweepPoint
    after: SweepPoint
    provenance: dict[str, Any]
    incoherent: tuple[Bool[Tensor, " prompt"], Bool[Tensor, " prompt"]] | None = None

    @property
    def _answered(self) -> tuple[Tensor, Tensor]:
        refused = self.before.refused, self.after.refused
        none = self.incoherent or tuple(map(torch.zeros_like, refused))
        return ~(refused[0] | none[0]), ~(refused[1] | none[1])

    @property
    def answered(self) -> tuple[Share, Share]:
        """Answered before and after, each with its own 95 % interval."""
        before, after = self._answered
        return Share.of(before), Share.of(after)

    @property
    def change(self) -> tuple[float, float, float]:
        """Answered after − answered before, in prompts, with its exact 95 % interval over the same prompts."""
        before, after = self._answered
        n = len(before)
        mean, low, high = paired_difference(after, before)
        return mean * n, low * n, high * n

    @property
    def within_noise(self) -> bool:
        """Whether the interval of the change holds 0 (exact McNemar test)."""
        return paired_p(*self._answered) >= LEVEL

    def to_frame(self) -> pd.DataFrame:
        """Two rows, before and after: layers and α, ``answered``, ``n``, the rate with its interval, degenerate."""
        import pandas as pd

        rows = []
        for when, point, share in zip(("before", "after"), (self.before, self.after), self.answered, strict=True):
            first, last = point.layers or (None, None)
            low, high = share.interval
            rows.append(
                {
                    "when": when,
                    "first": first,
                    "last": last,
                    "alpha": point.alpha,
                    "answered": share.hits,
                    "rate": share.rate,
                    "rate_low": low,
                    "rate_high": high,
                    "degenerate": point.degenerate,
                    **point.record(),
                }
            )
        return pd.DataFrame(rows).astype({"first": "Int64", "last": "Int64"})

    def categories(self) -> pd.DataFrame:
        """Before and after by category of the queries: what is *refused*; none without categories."""
        return points_by_category(
            [({"when": when}, point) for when, point in (("before", self.before), ("after", self.after))], "malicious"
        )

    def __str__(self) -> str:
        before, after = self.answered
        _, low, high = self.change
        text = f"answered {before.hits} of {before.n}, and {after.hits} with layers {self.after.layers} at alpha "
        text += f"{self.after.alpha:g}: change {after.hits - before.hits:+d} [{low:+.1f}, {high:+.1f}]"
        text += ", within noise" if self.within_noise else ""
        said = [f"{name} {Beside.of(point.record(), 'answered')}" for name, point in self._points.items()]
        return f"{text}; {'; '.join(said)}"

    @property
    def _points(self) -> dict[str, SweepPoint]:
        return {"unscaled": self.before, "scaled": self.after}


@checked
def answered_malicious(
    model: HookedModel,
    malicious: PromptSet | Sequence[str],
    layers: LayerRange | Sequence[int],
    alpha: float,
    **counting: Unpack[CountingOptions],
) -> MaliciousCheck:
    """Count the malicious queries that are answered by the model as it is and with ``layers`` scaled by ``alpha``.

    What is not refused counts as answered, as in the paper, unless it is word salad, to which the unscaled model is
    asked.

    Args:
        layers: 0-indexed and inclusive.
        counting: as in ``localize``; checks of other ranges may share a ``resume`` file.

    Raises:
        ValueError: for a range outside the model, and for an α that is not positive or equals 1.

    Examples:
        >>> check = sc.layers.answered_malicious(model, malicious, (3, 5), alpha=0.9)
        >>> check.before.count  # refused of 8
        8
    """
    require_hooked(model)
    block = LayerRange.of(layers, int(model.cfg.n_layers))
    alpha = checked_alpha(alpha)
    prompts = as_prompt_set(malicious, "malicious")
    counter = RefusalCounter(model, prompts, **counting)
    if counter.baseline.refused.all():
        notify("every malicious query is refused as it is, so that scaling cannot lower the number that are answered")
    after = counter.count(block, alpha)
    made_by = dict(counter.provenance)
    made_by["malicious"] = made_by.pop("over_rejection")  # the counter's name for whatever prompts it counts on
    template, detector = counter.generation["template"], counter.detector
    strange = [
        verdicts(one.completions, detector, unlikely=unlikely_answers(model, one.completions, template))
        for one in (counter.baseline, after)
    ]
    return MaliciousCheck(
        counter.baseline, after, made_by, (strange[0].are("incoherent"), strange[1].are("incoherent"))
    )
