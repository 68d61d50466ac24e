"""A model's modules without weights."""

from __future__ import annotations

from typing import Any

import torch


def skeleton_of(config: Any) -> Any:
    """The Hugging Face model of a configuration without weights (on the meta device)."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def with_buffers(config: Any, dtype: torch.dtype) -> Any:
    """The same with the buffers that are in no state dict (rotary frequencies, position tables), as they load."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
