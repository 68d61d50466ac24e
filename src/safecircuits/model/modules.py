"""A model's modules: without weights, and which of them are its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def meta_model_of(config: Any) -> Any:
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


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of any language model, in order: a hooked model's blocks, or a Hugging Face model's layers.

    The latter are the list of ``num_hidden_layers`` modules that holds the most parameters: a list of as many experts,
    say, lies inside one of them.

    Raises:
        ValueError: if the model has no such list.
    """
    if hasattr(model, "hook_dict"):
        blocks: nn.ModuleList = model.blocks
        return blocks
    n_layers = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of its {n_layers} layers, so they are not found")
    return max(lists, key=lambda modules: sum(p.numel() for p in modules.parameters()))
