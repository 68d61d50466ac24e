"""Configurations of many architectures, tiny and random, each against Hugging Face one prompt at a time.

    python tests/configurations.py        prints which load, which are right, and which are refused and why, by backend

Beyond the zoo, whose members are taken apart matrix by matrix, these vary what a configuration can vary: positions,
windows, biases, tying, scales, the width of a head, the order of norms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import safecircuits as sc
from conftest import build_tiny_tokenizer, randomised
from safecircuits.model.modules import decoder_layers
from safecircuits.prompts.prompt_set import encode

ROPE: dict[str, Any] = {"rope_theta": 10000.0}
LINEAR = ROPE | {"rope_type": "linear", "factor": 4.0}
DYNAMIC = ROPE | {"rope_type": "dynamic", "factor": 4.0}
YARN = ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = ROPE | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = ROPE | {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 64,
}
PARTIAL = ROPE | {"rope_type": "default", "partial_rotary_factor": 0.5}
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
WIDE: dict[str, Any] = {"head_dim": 16}
MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4, "num_local_experts": 4}
MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MULTI_HEAD: dict[str, Any] = {"num_key_value_heads": 4}
BARE: dict[str, Any] = {"num_key_value_heads": None, "intermediate_size": None}
MAMBA: dict[str, Any] = {"mamba_d_state": 4, "mamba_d_conv": 3, "mamba_expand": 2, "mamba_dt_rank": 4}

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama, linear positions": ("Llama", {"rope_parameters": LINEAR}),
    "Llama, dynamic positions": ("Llama", {"rope_parameters": DYNAMIC}),
    "Llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "Llama, llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "Llama, longrope": ("Llama", {"rope_parameters": LONGROPE}),
    "Llama, attention biases": ("Llama", {"attention_bias": True}),
    "Llama, MLP biases": ("Llama", {"mlp_bias": True}),
    "Llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "Llama, wide heads": ("Llama", WIDE),
    "Llama, GELU": ("Llama", {"hidden_act": "gelu"}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral, window": ("Mistral", {"sliding_window": 4}),
    "Mistral, wide heads": ("Mistral", WIDE | {"sliding_window": None}),
    "Ministral": ("Ministral", {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2}),
    "Mixtral": ("Mixtral", MOE),
    "Qwen2": ("Qwen2", {}),
    "Qwen2, window": ("Qwen2", WINDOW),
    "Qwen2, yarn": ("Qwen2", {"rope_parameters": YARN}),
    "Qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("Qwen3", {"head_dim": 8}),
    "Qwen3, wide heads": ("Qwen3", WIDE),
    "Qwen3, window": ("Qwen3", WINDOW | {"head_dim": 8}),
    "Qwen3, yarn": ("Qwen3", {"head_dim": 8, "rope_parameters": YARN}),
    "Qwen3, attention biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "Qwen2-MoE": ("Qwen2Moe", MOE | {"shared_expert_intermediate_size": 24}),
    "Qwen3-MoE": ("Qwen3Moe", MOE | {"head_dim": 8}),
    "Qwen3-Next": ("Qwen3Next", MOE | {
        "head_dim": 8, "shared_expert_intermediate_size": 24, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    }),
    "Phi-1": ("Phi", MULTI_HEAD),
    "Phi-2": ("Phi", MULTI_HEAD | {"partial_rotary_factor": 0.25, "hidden_act": "gelu_new"}),
    "Phi-3": ("Phi3", {}),
    "Phi-3, window": ("Phi3", {"sliding_window": 4}),
    "Phi-3, longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "Phi-4-mini": ("Phi3", {"rope_parameters": PARTIAL}),
    "Phi-3.5-MoE": ("Phimoe", MOE | {"rope_parameters": ROPE | {"rope_type": "default"}}),
    "Gemma": ("Gemma", WIDE),
    "Gemma-2": ("Gemma2", WIDE | {"query_pre_attn_scalar": 16, "sliding_window": 4}),
    "Gemma-3": ("Gemma3Text", WIDE | {"query_pre_attn_scalar": 16, "sliding_window": 4}),
    "OLMo": ("Olmo", {}),
    "OLMo, clipped": ("Olmo", {"clip_qkv": 0.5}),
    "OLMo-2": ("Olmo2", MULTI_HEAD | {"rms_norm_eps": 1e-9}),
    "OLMo-3": ("Olmo3", MULTI_HEAD | {"sliding_window": 4, "rms_norm_eps": 1e-9}),
    "OLMoE": ("Olmoe", MOE),
    "GPT-2": ("GPT2", BARE),
    "GPT-2, unscaled attention": ("GPT2", BARE | {"scale_attn_weights": False}),
    "GPT-2, scaled by layer": ("GPT2", BARE | {"scale_attn_by_inverse_layer_idx": True}),
    "GPT-2, narrow MLP": ("GPT2", BARE | {"n_inner": 48}),
    "GPT-2, ReLU": ("GPT2", BARE | {"activation_function": "relu"}),
    "GPT-2, untied": ("GPT2", BARE | {"tie_word_embeddings": False}),
    "GPTBigCode": ("GPTBigCode", BARE | {"multi_query": True}),
    "GPTBigCode, all heads": ("GPTBigCode", BARE | {"multi_query": False}),
    "GPT-J": ("GPTJ", BARE | {"rotary_dim": 4}),
    "GPT-Neo": ("GPTNeo", BARE | {"attention_types": [[["global", "local"], 1]], "window_size": 4}),
    "CodeGen": ("CodeGen", BARE | {"rotary_dim": 4}),
    "GPT-NeoX": ("GPTNeoX", {"num_key_value_heads": None}),
    "GPT-NeoX, in sequence": ("GPTNeoX", {"num_key_value_heads": None, "use_parallel_residual": False}),
    "GPT-NeoX, no attention biases": ("GPTNeoX", {"num_key_value_heads": None, "attention_bias": False}),
    "GPT-NeoX, all rotary": ("GPTNeoX", {"num_key_value_heads": None, "rotary_pct": 1.0}),
    "BLOOM": ("Bloom", BARE | {"max_position_embeddings": None}),
    "BLOOM, residual behind the norm": ("Bloom", BARE | {
        "max_position_embeddings": None, "apply_residual_connection_post_layernorm": True,
    }),
    "Falcon": ("Falcon", BARE | {"multi_query": True, "alibi": False, "parallel_attn": True, "bias": True}),
    "Falcon, alibi": ("Falcon", BARE | {"multi_query": False, "alibi": True, "parallel_attn": False}),
    "Falcon, in sequence": ("Falcon", BARE | {"multi_query": True, "alibi": False, "parallel_attn": False}),
    "OPT": ("OPT", BARE | {"ffn_dim": 48}),
    "OPT, norms behind": ("OPT", BARE | {"ffn_dim": 48, "do_layer_norm_before": False}),
    "OPT-350m": ("OPT", BARE | {"ffn_dim": 48, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "OPT, no biases": ("OPT", BARE | {"ffn_dim": 48, "enable_bias": False}),
    "MPT": ("Mpt", BARE | {"max_position_embeddings": None, "max_seq_len": 64, "d_model": 32, "n_heads": 4}),
    "StableLM": ("StableLm", {}),
    "StableLM, norms by head": ("StableLm", {"qk_layernorm": True}),
    "StableLM, parallel": ("StableLm", {"use_parallel_residual": True}),
    "StableLM, biases": ("StableLm", {"use_qkv_bias": True}),
    "Starcoder2": ("Starcoder2", {}),
    "Starcoder2, window": ("Starcoder2", {"sliding_window": 4}),
    "Granite": ("Granite", {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "Granite, scaled attention": ("Granite", {"attention_multiplier": 0.2}),
    "Granite-MoE": ("GraniteMoe", MOE),
    "Cohere": ("Cohere", {}),
    "Cohere, norms by head": ("Cohere", {"use_qk_norm": True}),
    "Cohere-2": ("Cohere2", {"sliding_window": 4}),
    "SmolLM3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "GLM": ("Glm", {"head_dim": 8}),
    "GLM-4": ("Glm4", {"head_dim": 8}),
    "Nemotron": ("Nemotron", {}),
    "EXAONE-4": ("Exaone4", {"sliding_window": 4, "sliding_window_pattern": 2}),
    "Apertus": ("Apertus", {}),
    "Arcee": ("Arcee", {}),
    "Helium": ("Helium", {"head_dim": 8}),
    "Seed-OSS": ("SeedOss", {"head_dim": 8}),
    "ERNIE-4.5": ("Ernie4_5", {}),
    "Hunyuan": ("HunYuanDenseV1", {"head_dim": 8}),
    "XGLM": ("XGLM", BARE | {"d_model": 32, "ffn_dim": 48, "attention_heads": 4, "num_layers": 2}),
    "BioGPT": ("BioGpt", {"num_key_value_heads": None}),
    "gpt-oss": ("GptOss", MOE | {"head_dim": 8, "sliding_window": 4, "rope_parameters": YARN}),
    "DeepSeek-V2": ("DeepseekV2", MLA),
    "DeepSeek-V3": ("DeepseekV3", MLA),
    "Mamba": ("Mamba", BARE | {"state_size": 4}),
    "Mamba-2": ("Mamba2", BARE | {"state_size": 4, "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1}),
    "FalconMamba": ("FalconMamba", BARE | {"state_size": 4}),
    "RecurrentGemma": ("RecurrentGemma", {
        "lru_width": 32, "attention_window_size": 4, "block_types": ["recurrent", "attention"], "head_dim": 8,
    }),
    "LFM2": ("Lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "Jamba": ("Jamba", MOE | MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
    "Bamba": ("Bamba", MAMBA | {
        "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_dt_rank": None,
    }),
}  # fmt: skip


def build(name: str, seed: int = 0) -> Any:
    """A fresh plain Hugging Face model of a configuration, with random weights, norms and biases."""
    import transformers

    kind, changes = CONFIGURATIONS[name]
    settings: dict[str, Any] = {
        "vocab_size": len(build_tiny_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    given = {key: value for key, value in (settings | changes).items() if value is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, f"{kind}Config")(**given)
        return randomised(transformers.AutoModelForCausalLM.from_config(config)).eval()


def alone(hf: Any, prompts: list[str]) -> Tensor:
    """The residual stream ``[layer prompt d_model]`` at the last token, by plain hooks, one prompt at a time."""
    rows = []
    for example in encode(build_tiny_tokenizer(), prompts, template="none"):
        seen: list[Tensor] = []

        def keep(*given: Any, seen: list[Tensor] = seen) -> None:
            seen.append((given[-1][0] if isinstance(given[-1], tuple) else given[-1])[0, -1].clone())

        handles = [layer.register_forward_hook(keep) for layer in decoder_layers(hf)]
        with torch.no_grad():
            hf(input_ids=torch.tensor([example.ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        rows.append(torch.stack(seen))
    return torch.stack(rows, dim=1)


def continued(hf: Any, prompts: list[str], n: int) -> list[list[int]]:
    """Greedy tokens after each prompt, one at a time and without a cache, up to the end token."""
    answers = []
    for example in encode(build_tiny_tokenizer(), prompts, template="none"):
        ids = list(example.ids)
        for _ in range(n):
            with torch.no_grad():
                ids.append(int(hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == hf.config.eos_token_id:
                ids.pop()
                break
        answers.append(ids[len(example) :])
    return answers


def apart(got: Tensor, want: Tensor) -> float:
    """The largest distance of two residuals, as a share of the size of the right one."""
    return float(((got - want).norm(dim=-1) / want.norm(dim=-1)).max())


PROMPTS = ["how do i make the cake", "find a lamp", "how do i fix the road and the house with some water", "a dog"]


def examine(name: str, backend: str) -> tuple[str, str]:
    """Whether a configuration is refused (and why), right, or wrong (and by how much)."""
    hf = build(name)
    try:
        model = sc.load_model(hf, tokenizer=build_tiny_tokenizer(), backend=backend)
    except ValueError as error:
        return "refused", str(error)
    off = apart(sc.collect_residuals(model, PROMPTS, template="none").values, alone(hf, PROMPTS))
    tokens: list[list[int]] = []
    sc.generate(model, PROMPTS, max_new_tokens=6, template="none", token_ids=tokens)
    others = sum(mine != theirs for mine, theirs in zip(tokens, continued(hf, PROMPTS, 6), strict=True))
    if off < 1e-5 and not others:
        return "right", ""
    return "wrong", f"residuals off by {off:.2g}, {others} of {len(PROMPTS)} completions differ"


def main() -> None:
    torch.set_num_threads(1)
    for backend in ("bridge", "hooked"):
        found = {name: examine(name, backend) for name in CONFIGURATIONS}
        for name, (status, note) in found.items():
            if status != "right":
                print(f"{backend:7} {name:34} {status:8} {note}")
        counts = {kind: sum(status == kind for status, _ in found.values()) for kind in ("right", "refused", "wrong")}
        print(f"{backend}: {len(found)} configurations: {counts}")


if __name__ == "__main__":
    main()
