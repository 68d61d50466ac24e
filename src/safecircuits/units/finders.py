"""Finders of regions that are ready for ``region_stability``: a block of layers, the units by a score, the units that
write the refusal direction.

Each is called with the prompts of a setting, and gives a set of units; a direction has no units of its own, and is
compared by those that write it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from safecircuits.base.arguments import checked, whole
from safecircuits.direction.means import mean_directions
from safecircuits.direction.writers import direction_writers
from safecircuits.layers.decision import decision_layers
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.units.importance import score_units

SHARE = 0.013
"""Of all units: SSAH's share of safety-critical ones on Llama-2-7b-chat."""


class NoRegion(ValueError):
    """A finder names no region of this model with these prompts, and the message says why.

    Examples:
        >>> try:
        ...     sc.units.find_decision_layers(model, normal, normal)
        ... except sc.units.NoRegion as nothing:
        ...     print("within noise" in str(nothing))
        True
    """


@checked
def find_decision_layers(
    model: HookedModel,
    malicious: PromptSet | Sequence[str],
    normal: PromptSet | Sequence[str],
    *,
    template: str = "auto",
) -> FreezeMask:
    """The layers in which refusing is decided, as all their units.

    Raises:
        ValueError: where no layers decide.

    Examples:
        >>> sc.units.find_decision_layers(model, malicious, normal).whole_layers
        (2, 3, 4, 5)
    """
    found = decision_layers(model, normal, malicious, template=template)
    if found.layers is None:
        raise NoRegion(f"there is no block to compare: {found.verdict}")
    return FreezeMask.layers(found.layers, model)


@checked
def find_attributed_units(
    model: HookedModel,
    malicious: PromptSet,
    normal: PromptSet,
    *,
    n: int | None = None,
    template: str = "auto",
) -> FreezeMask:
    """The ``n`` units to which refusing is attributed most, against normal prompts; 1.3 % of all unless given.

    Examples:
        >>> sc.units.find_attributed_units(model, malicious, normal, n=24).n_units()
        24
    """
    scores = score_units(model, malicious, method="attribution", reference=normal, template=template)
    return scores.top(_number(model, n))


@checked
def find_writers(
    model: HookedModel,
    malicious: PromptSet | Sequence[str],
    normal: PromptSet | Sequence[str],
    *,
    layer: int | None = None,
    n: int | None = None,
    template: str = "auto",
) -> FreezeMask:
    """The ``n`` units that write most of the direction in which malicious prompts differ; 1.3 % of all unless given.

    Args:
        layer: after which the direction is taken, at the last token; that at which it is longest beside what shuffled
            labels give unless given.

    Raises:
        ValueError: for prompts that do not differ, and where fewer units write the direction.

    Examples:
        >>> sc.units.find_writers(model, malicious, normal, n=24).n_units()
        24
    """
    directions = mean_directions(model, malicious, normal, template=template)
    chosen = directions.refusal(directions.clearest if layer is None else layer)
    return direction_writers(model, chosen, malicious, normal, template=template).top(_number(model, n))


def _number(model: HookedModel, n: int | None) -> int:
    return max(1, round(SHARE * ModelShape.of(model).total_units)) if n is None else whole(n, "n", 1)


FINDERS: Mapping[str, Callable[..., FreezeMask]] = {
    "layers": find_decision_layers,
    "units": find_attributed_units,
    "direction": find_writers,
}
"""By the object that they find."""
