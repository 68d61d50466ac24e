"""Activation patching: the residual stream of other prompts in a run, at the post-instruction tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.model.attach import HookFn, attached
from safecircuits.model.forward import Decoder
from safecircuits.model.memory import batch_tokens
from safecircuits.model.sites import HookedModel, resid_post
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import Encoded, render


def count_post_instruction_tokens(tokenizer: Any, examples: Sequence[Encoded], template: str = "auto") -> int:
    """How many post-instruction tokens there are: last tokens that are the template's own and the same in all prompts.

    At least 1, the last token. What a model gathers about an instruction after reading it, it gathers there.
    """
    marker = "instruction"
    closing = render(tokenizer, marker, template).rpartition(marker)[2]
    longest = len(tokenizer(closing, add_special_tokens=False)["input_ids"]) if closing else 0
    longest = min(longest, min(len(example) for example in examples) - 1)
    shared = 0
    while shared < longest and len({example.ids[-1 - shared] for example in examples}) == 1:
        shared += 1
    return max(1, shared)


@dataclass(frozen=True)
class CachedRun:
    """Prompts with what the model makes of them: first answer logits, and the residual stream after every layer."""

    examples: tuple[Encoded, ...]
    logits: Float[Tensor, "prompt d_vocab"]
    """Float64 on the CPU."""
    residuals: Float[Tensor, "layer prompt pos d_model"]
    """At the last ``pos`` positions, in the model's dtype, on the CPU."""
    max_tokens: int

    @classmethod
    def of(
        cls, model: HookedModel, examples: Sequence[Encoded], positions: int, max_tokens: int | None = None
    ) -> CachedRun:
        """Run the prompts once.

        Raises:
            FloatingPointError: if the logits are not finite.
        """
        n_layers, dtype = int(model.cfg.n_layers), next(iter(model.parameters())).dtype
        residuals = torch.empty(n_layers, len(examples), positions, int(model.cfg.d_model), dtype=dtype)

        def keep(layer: int, rows: Sequence[int]) -> HookFn:
            def store(resid: Tensor) -> None:  # left padding aligns the last positions
                residuals[layer, list(rows)] = resid[:, -positions:].cpu()

            return store

        def hooks(rows: Sequence[int]) -> dict[str, HookFn]:
            return {resid_post(layer): keep(layer, rows) for layer in range(n_layers)}

        budget = batch_tokens(model, examples, max_tokens, cached=True)
        return cls(tuple(examples), _first_logits(model, examples, hooks, budget), residuals, budget)

    def patched_logits(
        self, model: HookedModel, layer: int, values: Float[Tensor, "prompt pos d_model"]
    ) -> Float[Tensor, "prompt d_vocab"]:
        """The logits with the residual stream after ``layer`` patched: ``values`` at the last positions."""

        def hooks(rows: Sequence[int]) -> dict[str, HookFn]:
            mine = values[list(rows)]

            def patch(resid: Tensor) -> Tensor:
                out = resid.clone()
                out[:, -mine.shape[1] :] = mine.to(resid)
                return out

            return {resid_post(layer): patch}

        return _first_logits(model, self.examples, hooks, self.max_tokens)


def _first_logits(
    model: HookedModel,
    examples: Sequence[Encoded],
    hooks: Callable[[Sequence[int]], dict[str, HookFn]],
    max_tokens: int,
) -> Float[Tensor, "prompt d_vocab"]:
    """Logits of the first answer token, with hooks that are told which prompts a batch holds."""
    by_row: dict[int, Tensor] = {}
    with torch.inference_mode():
        for batch in batches(examples, max_tokens):
            with attached(model, hooks(batch.rows)):
                values = Decoder(model).step(batch.input_ids, batch.attention_mask).double().cpu()
            by_row |= zip(batch.rows, values, strict=True)
    logits = torch.stack([by_row[row] for row in range(len(examples))])
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the logits are not finite, so nothing can be compared")
    return logits
