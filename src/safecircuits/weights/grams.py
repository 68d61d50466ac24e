"""Second moments of what enters each matrix, XXᵀ summed while the data streams by: what ActSVD and SparseGPT need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.vocabulary import Component, TokenChoice
from safecircuits.hooks.linear_maps import components_of
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.weights.inputs import each_input

# q, k and v read one input and gate and in another, so one of each is watched.
_READS_LIKE: dict[Component, Component] = {"k": "q", "v": "q", "gate": "in"}


class InputGrams:
    """``grams.of(layer, component)`` is Σ x xᵀ over the chosen tokens, float64; ``count`` says how many there were."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, Component], Tensor] = {}
        self.count = 0

    def of(self, layer: int, component: Component) -> Float[Tensor, "in in"]:
        return self.sums[layer, _READS_LIKE.get(component, component)]


def input_grams(
    model: HookedModel,
    data: PromptSet,
    *,
    tokens: TokenChoice,
    components: Sequence[Component] | None,
    template: str,
    max_tokens: int | None,
    progress: bool,
    what: str,
    count_beginning: bool,
    layers: Sequence[int] | None = None,
) -> InputGrams:
    """Σ x xᵀ of what enters the matrices of every layer, or of some, of the model as it is, in one streaming pass.

    Raises:
        ValueError: for an unknown matrix, or data without responses where they are asked for.
        FloatingPointError: for inputs that are not finite; names the matrix.
    """
    read = tuple(dict.fromkeys(_READS_LIKE.get(c, c) for c in components_of(model, components)))
    found = InputGrams()

    def add(layer: int, component: Component, x: Tensor) -> None:
        rows = x.double()
        gram = rows.T @ rows
        if not torch.isfinite(gram).all():
            raise FloatingPointError(f"the inputs of matrix {layer}.{component} are not finite")
        key = (layer, component)
        found.sums[key] = found.sums[key] + gram if key in found.sums else gram

    found.count = each_input(
        model,
        data,
        read,
        add,
        tokens=tokens,
        template=template,
        max_tokens=max_tokens,
        count_beginning=count_beginning,
        progress=progress,
        what=what,
        layers=layers,
    )
    return found
