"""How well a direction tells prompts apart that it was not made of, and those of a kind of harm it has not seen."""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.direction.prompt_states import PromptStates
from safecircuits.prompts.prompt_set import PromptSet


def balanced_accuracy(
    made_of: PromptStates, judged: PromptStates, kept: Bool[Tensor, " prompt"] | None = None
) -> Float[Tensor, "layer position"]:
    """Share of ``judged`` prompts on their side of the midpoint of the two means, mean of the two kinds.

    Args:
        kept: the prompts of ``made_of`` that the direction is made of; all unless given.
    """
    right_harmful, right_harmless = _right(made_of, judged, kept)
    return (right_harmful.double().mean(-1) + right_harmless.double().mean(-1)) / 2


def left_out_accuracy(
    made_of: PromptStates, harmful: PromptSet, judged: PromptStates
) -> Float[Tensor, "layer position"]:
    """The same for each category of the harmful prompts, from all the others; mean over categories.

    Harmless prompts are the held-out ones of ``judged``.

    Raises:
        ValueError: for prompts without categories, a single category, and one with a single prompt.
    """
    if harmful.categories is None:
        raise ValueError(f"the prompts of {harmful.name!r} have no categories, so none of them can be left out")
    sizes = Counter(harmful.categories)
    if len(sizes) < 2:
        raise ValueError(f"all prompts of {harmful.name!r} are of the category {next(iter(sizes))!r}: nothing is left")
    if single := [name for name, size in sizes.items() if size < 2]:
        raise ValueError(
            f"the category {single[0]!r} of {harmful.name!r} has one prompt, which says nothing of a kind of harm: "
            "give each at least two, or join them"
        )
    n_harmless = made_of.values.shape[2] - made_of.n_harmful
    each = []
    for name in sizes:
        theirs = torch.tensor([one == name for one in harmful.categories] + [False] * n_harmless)
        right, _ = _right(made_of, made_of, ~theirs)
        _, right_harmless = _right(made_of, judged, ~theirs)
        left_out = right[..., theirs[: made_of.n_harmful]].double().mean(-1)
        each.append((left_out + right_harmless.double().mean(-1)) / 2)
    return torch.stack(each).mean(0)


def _right(
    made_of: PromptStates, judged: PromptStates, kept: Bool[Tensor, " prompt"] | None
) -> tuple[Bool[Tensor, "layer position harmful"], Bool[Tensor, "layer position harmless"]]:
    kept = torch.ones(made_of.values.shape[2], dtype=torch.bool) if kept is None else kept
    first = torch.arange(len(kept)) < made_of.n_harmful
    harmful, harmless = (made_of.values[:, :, kept & kind].double().mean(2) for kind in (first, ~first))
    direction, middle = harmful - harmless, (harmful + harmless) / 2
    beyond = torch.einsum("lpnd,lpd->lpn", judged.values, direction.float())
    beyond = beyond.double() - (middle * direction).sum(-1)[..., None]
    n = judged.n_harmful
    return beyond[..., :n] > 0, beyond[..., n:] <= 0
