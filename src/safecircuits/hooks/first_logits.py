"""The logits of the first answer token of many prompts, with hooks of ours in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.hooks.passes import running
from safecircuits.model.attach import HookFn
from safecircuits.model.forward import Decoder
from safecircuits.model.memory import batch_tokens
from safecircuits.model.shares import columns_in_order, spread
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.batching import Batch, each_batch, pad_left, without_prefix
from safecircuits.prompts.prompt_set import Encoded


def first_logits(
    model: HookedModel,
    examples: Sequence[Encoded],
    hooks: Mapping[str, HookFn] | None = None,
    *,
    max_tokens: int | None = None,
) -> Float[Tensor, "prompt d_vocab"]:
    """Logits after the last token of each example, on the CPU in the model's dtype; a shared prefix runs once.

    Args:
        hooks: each treats every token by itself, as ``running`` asks.
    """

    def logits_of(share: list[int]) -> Float[Tensor, "share d_vocab"]:
        return _first_logits(model, [examples[row] for row in share], hooks, max_tokens)

    return columns_in_order(spread(model, examples, logits_of, "first logits"), dim=0)


def _first_logits(
    model: HookedModel, examples: Sequence[Encoded], hooks: Mapping[str, HookFn] | None, max_tokens: int | None
) -> Float[Tensor, "prompt d_vocab"]:
    found: dict[int, Tensor] = {}
    with running(model, hooks) as runner:
        shared = runner.prefix_length(examples)
        prefix: Decoder | None = None
        if shared:
            start = pad_left([Encoded(examples[0].ids[:shared], shared)])
            prefix = runner.decoder()
            prefix.feed(start.input_ids, start.attention_mask, runner.block(int(model.cfg.n_layers) - 1), keep=True)

        def work(batch: Batch) -> None:
            decoder = runner.decoder() if prefix is None else prefix.rows(torch.zeros(len(batch), dtype=torch.long))
            out = decoder.step(batch.input_ids, batch.attention_mask).cpu()
            found.update(zip(batch.rows, out, strict=True))

        budget = batch_tokens(model, examples, max_tokens, more=shared, cached=True)
        for _ in each_batch(without_prefix(examples, shared), work, budget, beside=shared, tight=True):
            pass
    return torch.stack([found[row] for row in range(len(examples))])
