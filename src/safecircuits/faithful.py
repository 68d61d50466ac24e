"""Whether a bridge computes what the Hugging Face model does that it was made of.

Of the architectures that the support table lists, tests show it. For many others transformer-lens has an adapter too,
and for a few of them it builds a bridge that computes something else, without a word.
"""

from __future__ import annotations

from typing import Any

import torch

from safecircuits.forward import device_of, without_dropout
from safecircuits.sites import HookedModel

TESTED = frozenset(
    {
        *("BloomForCausalLM", "FalconForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "Gemma2ForCausalLM"),
        *("Gemma3ForCausalLM", "GemmaForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Olmo2ForCausalLM"),
        *("Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    }
)
"""Architectures whose bridges the tests compare with Hugging Face."""

_TOKENS = 8

# Another kernel for attention differs by less, in full and in half precision; a wrong scale or rotation by more.
_TOLERANCE, _ROUNDED = 1e-3, 0.1


def require_faithful(bridge: HookedModel, hf_model: Any) -> None:
    """A ValueError if the logits of a few tokens are not those of ``hf_model``; tested architectures cost nothing."""
    architecture = type(hf_model).__name__
    if architecture in TESTED:
        return
    ids = torch.arange(_TOKENS, device=device_of(bridge))[None] % int(bridge.cfg.d_vocab)
    try:
        with torch.inference_mode(), without_dropout(hf_model):
            want = hf_model(input_ids=ids, use_cache=False).logits.double()
            got = bridge.original_model(input_ids=ids, use_cache=False).logits.double()  # type: ignore[attr-defined]
    except Exception:
        return  # what cannot run says so by itself wherever it is needed
    apart = float((got - want).norm() / want.norm())
    most = _TOLERANCE if hf_model.dtype.itemsize > 2 else _ROUNDED
    if torch.isfinite(want).all() and not apart <= most:
        raise ValueError(
            f"transformer-lens makes a bridge of this {architecture} that computes something else: on {_TOKENS} tokens "
            f"its logits are off by {apart:.0%} of their size, and so would be everything measured on it; use another "
            "version of transformer-lens or another model"
        )
