"""Pairs of harmless sets, whose gaps say what a gap between harmful and harmless prompts has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from safecircuits.base.arguments import checked
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set


@checked
def benign_controls(
    normal: PromptSet | Sequence[str], borderline: PromptSet | Sequence[str] | None = None
) -> dict[str, tuple[PromptSet, PromptSet]]:
    """What ``compare_gaps`` takes as ``controls``, made of harmless prompts alone.

    Args:
        normal: every other one is held against the rest (benign A against benign B): they differ in nothing but
            chance.
        borderline: harmless prompts with the words and topics of malicious ones, such as an over-rejection set. They
            are held against the normal ones: they differ in topic and not in harm.

    Raises:
        ValueError: for fewer than four normal prompts, or fewer than two borderline ones.

    Examples:
        >>> controls = sc.layers.benign_controls(normal, over_rejection)
        >>> list(controls)
        ['benign A against B', 'borderline against normal']
        >>> found = sc.compare_gaps({"aligned": "aligned", "base": "base"}, normal, malicious, controls=controls)
        >>> 7 in found.opened("base")  # a layer in which the gap of harm has grown more than either of these
        True
    """
    normal = as_prompt_set(normal, "normal")
    if len(normal) < LEAST:
        raise ValueError(f"{normal.name!r} has {len(normal)} prompts: two halves of pairs need at least {LEAST}")
    found = {"benign A against B": (normal[::2], normal[1::2])}
    if borderline is not None:
        others = as_prompt_set(borderline, "borderline")
        if len(others) < 2:
            raise ValueError(f"{others.name!r} has one prompt: a gap is over pairs of prompts, so it needs at least 2")
        found["borderline against normal"] = (normal, others)
    return found


LEAST = 4
"""Normal prompts, of which two and two make pairs."""
