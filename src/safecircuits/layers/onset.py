"""Reading a first guess of the safety layers off the angle-gap curve.

The paper reads it by eye: "from the appearance of the gap to the first smoothing". This is that sentence as a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import read_fields
from safecircuits.base.vocabulary import LayerRange


@dataclass(frozen=True)
class OnsetRule:
    """The rule by which ``LayerGap.onset`` reads a range of layers off the gap curve: four numbers.

    A gap is one where it is positive and beyond noise: where its interval holds 0, or where it is negative, it counts
    as 0. With G the largest gap and s(k) = gap(k) − gap(k−1) the growth into layer k (s(0) = gap(0)):

    - there is no onset at all if G < ``min_gap_deg``;
    - the rise is the steepest growth up to the first layer whose gap reaches ``reach`` × G: the last layers of a real
      model, which choose words, open a gap of their own, as large and steeper;
    - the range starts at the first layer whose gap reaches ``appear`` × G and stays there in every later layer up to
      the rise;
    - it ends at the last layer before growth first falls below ``smooth`` × that of the rise, counted from there on.

    Examples:
        >>> rule = sc.OnsetRule(min_gap_deg=5.0)
        >>> sc.layer_gap(model, normal, malicious).onset(rule)
        Onset(layers=LayerRange(first=2, last=7), rule=OnsetRule(min_gap_deg=5.0, appear=0.1, smooth=0.25, reach=0.5))
    """

    min_gap_deg: float = 2.0
    appear: float = 0.1
    smooth: float = 0.25
    reach: float = 0.5

    def __post_init__(self) -> None:
        read_fields(self)
        if self.min_gap_deg < 0 or not all(0 < share < 1 for share in (self.appear, self.smooth, self.reach)):
            raise ValueError(
                "an onset rule needs min_gap_deg >= 0 and shares between 0 and 1, not "
                f"min_gap_deg={self.min_gap_deg}, appear={self.appear}, smooth={self.smooth}, reach={self.reach}"
            )

    def __str__(self) -> str:
        return (
            f"from {100 * self.appear:g} % of the largest gap (at least {self.min_gap_deg:g}°) "
            f"until growth is below {100 * self.smooth:g} % of its steepest before {100 * self.reach:g} % are reached"
        )


@dataclass(frozen=True)
class Onset:
    """A first guess of the range, and the rule that gave it.

    Examples:
        >>> onset = sc.layer_gap(model, normal, malicious).onset()
        >>> onset.layers
        LayerRange(first=2, last=7)
    """

    layers: LayerRange
    rule: OnsetRule

    def __str__(self) -> str:
        return str(self.layers)


def search_start(onset: Onset | None, n_layers: int) -> LayerRange:
    """Where a search by scaling starts: at the onset, or without one at the middle half of the model."""
    return onset.layers if onset else LayerRange(n_layers // 4, max(n_layers // 4, 3 * n_layers // 4 - 1))


def find_onset(
    gap_deg: Float[Tensor, " layer"] | Sequence[float],
    rule: OnsetRule,
    low: Float[Tensor, " layer"] | Sequence[float] | None = None,
) -> Onset | None:
    """Apply ``rule`` to a gap curve in degrees; None if the curve never reaches ``rule.min_gap_deg`` beyond noise.

    Args:
        low: the lower end of each gap's interval, where one is known.

    Examples:
        >>> sc.layers.find_onset([0.0, 0.1, 0.2, 3.0, 9.0, 11.0, 11.5, 11.6], sc.OnsetRule()).layers
        LayerRange(first=3, last=5)
    """
    floor = gap_deg if low is None else low
    gap = [float(g) if float(end) > 0 else 0.0 for g, end in zip(gap_deg, floor, strict=True)]
    largest = max(gap)
    if largest < rule.min_gap_deg:
        return None
    growth = [gap[0], *(b - a for a, b in pairwise(gap))]
    reached = next(layer for layer, value in enumerate(gap) if value >= rule.reach * largest)
    steepest = max(range(reached + 1), key=growth.__getitem__)
    first = steepest
    while first > 0 and gap[first - 1] >= rule.appear * largest:
        first -= 1
    last = steepest
    while last + 1 < len(gap) and growth[last + 1] >= rule.smooth * growth[steepest]:
        last += 1
    return Onset(LayerRange(first, last), rule)
