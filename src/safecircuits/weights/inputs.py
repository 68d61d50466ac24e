"""What enters the matrices of a model at the positions that count, while the data streams by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.progress import track
from safecircuits.base.vocabulary import Component, TokenChoice
from safecircuits.hooks.linear_maps import watched
from safecircuits.model.beginning import chosen_positions, encode_to_score
from safecircuits.model.forward import run
from safecircuits.model.memory import batch_tokens
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import PromptSet

Use = Callable[[int, Component, Tensor], None]
"""Called with layer, matrix, and the inputs ``[token, in]`` of one batch that count."""


def each_input(
    model: HookedModel,
    data: PromptSet,
    components: Sequence[Component],
    use: Use,
    *,
    tokens: TokenChoice,
    template: str,
    max_tokens: int | None,
    count_beginning: bool,
    progress: bool,
    what: str = "inputs",
    layers: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> int:
    """Hand what enters each matrix of every layer, or of some, to ``use``, batch by batch; returns how many tokens.

    Args:
        rows: of these prompts alone.

    Raises:
        ValueError: for an unknown choice of tokens, or data without responses where they count.
    """
    examples = encode_to_score(
        tokenizer_of(model), data, tokens=tokens, template=template, count_beginning=count_beginning
    )
    examples = examples if rows is None else [examples[row] for row in rows]
    counting: Bool[Tensor, "batch pos"]
    count = 0

    def look(layer: int, component: Component, x: Tensor) -> None:
        use(layer, component, x[counting.to(x.device)])

    with torch.inference_mode(), watched(model, components, inputs=look, layers=layers):
        for batch in track(list(batches(examples, batch_tokens(model, examples, max_tokens))), what, enabled=progress):
            counting = chosen_positions(batch, tokens)
            count += int(counting.sum())
            run(model, batch)
    return count
