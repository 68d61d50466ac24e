"""How far the distribution of the first token of an answer has moved."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.behavior.divergence import kl_divergence
from safecircuits.model.forward import Decoder
from safecircuits.model.memory import batch_tokens
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import PromptSet, encode


@torch.inference_mode()
def first_token_kl(
    before: HookedModel,
    after: HookedModel,
    prompts: PromptSet,
    *,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
) -> Float[Tensor, " prompt"]:
    """KL(before ‖ after) of the first answer token of each prompt, nats."""
    examples = encode(tokenizer_of(before), prompts, template=template, system=system)
    found = torch.empty(len(examples), dtype=torch.float64)
    for batch in batches(examples, batch_tokens(before, examples, max_tokens, cached=True)):
        p, q = (Decoder(model).step(batch.input_ids, batch.attention_mask).cpu() for model in (before, after))
        if p.shape != q.shape:
            raise ValueError(f"the models have {p.shape[-1]} and {q.shape[-1]} tokens, so their KL is not defined")
        found[list(batch.rows)] = kl_divergence(p, q)
    if not torch.isfinite(found).all():
        raise FloatingPointError("the logits are not finite")
    return found
