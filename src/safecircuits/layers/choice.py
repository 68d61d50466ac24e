"""The best of several scaled configurations: is it apart from the unscaled model, and which others may be as good?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safecircuits.base.notices import notify
from safecircuits.base.paired import LEVEL, chosen_p, rivals
from safecircuits.base.resamples import DRAWS, multiplicities
from safecircuits.base.stats import canonical_order
from safecircuits.layers.sweep_point import SweepPoint

NOTHING_MOVED = "layers {layers} are no finding: scaling them changes refusals no more than chance, or the wrong way"
"""What is held against a block whose scaling did not move refusals as it should."""


def resampled_best(points: Sequence[SweepPoint], up: bool) -> list[SweepPoint]:
    """The point of extreme count in each bootstrap resample of the prompts, the first of those given among equals.

    Which prompts a resample holds depends on the prompts alone, not on their order.
    """
    order = canonical_order(points[0].completions.prompts.prompts)
    refused = torch.stack([point.refused[order] for point in points]).double()
    n = refused.shape[1]
    counts = (multiplicities(n, DRAWS, torch.Generator().manual_seed(0)) @ refused.T).numpy()
    return [points[which] for which in (counts.argmax(1) if up else counts.argmin(1))]


def best_against(best: SweepPoint, tried: Sequence[SweepPoint], baseline: SweepPoint) -> float:
    """p-value of the best point against the unscaled model, corrected for all that were ``tried`` (``chosen_p``)."""
    distinct = {id(point.refused): point for point in tried}
    return chosen_p(
        list(distinct).index(id(best.refused)),
        torch.stack([point.refused for point in distinct.values()]),
        baseline.refused,
    )


def rivals_of(best: SweepPoint, points: Sequence[SweepPoint]) -> tuple[SweepPoint, ...]:
    """The other points that may as well be the best: with it they hold the true best in 95 % of cases."""
    place = next(i for i, point in enumerate(points) if point is best)
    return tuple(points[i] for i in rivals(place, torch.stack([point.refused for point in points])))


def moves(best: SweepPoint, baseline: SweepPoint, up: bool) -> bool:
    """Whether the count of the best point lies on the side of the unscaled model's that scaling should move it to."""
    return best.count > baseline.count if up else best.count < baseline.count


def against_unscaled(p: float, n_tried: int, moved: bool, up: bool) -> str:
    """The comparison in words, if it says that nothing was found; empty otherwise."""
    of = f"p = {p_value(p)}" + (f" for the best of {n_tried}" if n_tried > 1 else "")
    if p >= LEVEL:
        return f"within noise of not scaling at all ({of})"
    return "" if moved else f"no block that was scaled has {'more' if up else 'fewer'} refusals than scaling nothing"


def tell_if_nothing_can_move(baseline: SweepPoint, up: bool) -> None:
    """A notice, before anything is scaled, if the unscaled model refuses all prompts or none.

    Of a model that refuses nothing, a block scaled up has nothing to amplify: what counts move then is damage.
    """
    n, count = len(baseline.refused), baseline.count
    if count == (n if up else 0):
        notify(
            f"the unscaled model refuses {count} of the {n} over-rejection prompts, so that scaling cannot "
            f"{'add to' if up else 'lower'} that: nothing can be located this way"
        )
    elif count == 0:
        notify(
            f"nothing to amplify: the unscaled model refuses none of the {n} over-rejection prompts, so that refusals "
            "under scaling may be damage and no refusal made stronger; ask decision_layers (layers decide) whether it "
            "refuses malicious prompts at all"
        )


def p_value(p: float) -> str:
    """``0.13``, ``0.004``, ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
