"""Tiny random mixtures of experts of the true configuration classes, as transformers keeps them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import zoo

_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DEEPSEEK: dict[str, Any] = _MOE | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}

MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("MixtralConfig", _MOE | {"num_local_experts": 4}),
    "OLMoE": ("OlmoeConfig", _MOE | {"num_experts": 4}),
    "Qwen2-MoE": ("Qwen2MoeConfig", _MOE | {"num_experts": 4, "shared_expert_intermediate_size": 40}),
    "Qwen3-MoE": ("Qwen3MoeConfig", _MOE | {"num_experts": 4, "head_dim": 8}),
    "gpt-oss": ("GptOssConfig", _MOE | {"num_local_experts": 4, "head_dim": 8, "layer_types": ["full_attention"] * 2}),
    "GLM-4.5": ("Glm4MoeConfig", _DEEPSEEK | {"head_dim": 8}),
}
"""GLM-4.5's mixture is DeepSeek-V3's: a dense first layer, a shared expert, and a router that takes groups first."""


def build(name: str, **changes: Any) -> Any:
    """A fresh Hugging Face model with random weights and biases."""
    from transformers import AutoModelForCausalLM

    from conftest import randomised

    kind, settings = MIXTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomised(AutoModelForCausalLM.from_config(zoo._of(kind, **settings | changes)()))
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("_bias"):  # gpt-oss's experts start with none
                parameter.data.normal_(0, 0.3)
    return model.eval()


@cache
def hugging_face(name: str) -> Any:
    """The plain model, shared: copy it before changing it."""
    return build(name)


@cache
def bridge(name: str) -> Any:
    """A TransformerBridge over the same parameters, shared: do not change it."""
    return zoo.load(hugging_face(name), "bridge")
