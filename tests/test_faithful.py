"""A bridge that computes something else than Hugging Face is refused when it is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import safecircuits as sc
import zoo
from conftest import build_tiny_llama, randomised
from safecircuits.faithful import TESTED, require_faithful
from safecircuits.models import bridge_of

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
# Of transformer-lens 3.9; 4.3 computes what Hugging Face does.
UNLIKE: dict[str, dict[str, Any]] = {
    "CohereConfig": {"num_key_value_heads": 2},
    "DeepseekV2Config": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "q_lora_rank": None, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
}  # fmt: skip


def build(kind: str, **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SIZES | changes)
    return randomised(transformers.AutoModelForCausalLM.from_config(config)).eval()


@pytest.mark.parametrize("kind", list(UNLIKE))
def test_a_bridge_that_computes_something_else(kind: str, tiny_tokenizer: Any) -> None:
    hf_model = build(kind, **UNLIKE[kind])
    if "hooked" not in zoo.backends():
        sc.load_model(hf_model, tokenizer=tiny_tokenizer)
        return
    with pytest.raises(ValueError, match=r"bridge of this \w+ForCausalLM that computes something else: on 8 tokens"):
        sc.load_model(hf_model, tokenizer=tiny_tokenizer)


@pytest.mark.parametrize("kind", ["StableLmConfig", "Starcoder2Config"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bridge_that_computes_the_same(kind: str, dtype: torch.dtype, tiny_tokenizer: Any) -> None:
    hf_model = build(kind, num_key_value_heads=2).to(dtype)
    assert type(hf_model).__name__ not in TESTED
    sc.load_model(hf_model, tokenizer=tiny_tokenizer)


def test_dropout_is_no_difference_and_modes_stay(tiny_tokenizer: Any) -> None:
    hf_model = build("Starcoder2Config", num_key_value_heads=2, residual_dropout=0.5).train()
    sc.load_model(hf_model, tokenizer=tiny_tokenizer)
    assert all(module.training for module in hf_model.modules())


def test_another_scale_of_the_logits_is_seen(tiny_tokenizer: Any) -> None:
    hf_model = build("StableLmConfig", num_key_value_heads=2)
    bridge = bridge_of(hf_model)
    require_faithful(bridge, hf_model)
    bridge.original_model.lm_head.register_forward_hook(lambda *args: args[-1] * 1.02)
    with pytest.raises(ValueError, match=r"off by 2%"):
        require_faithful(bridge, hf_model)


def test_a_bridge_that_fails_is_left_to_fail_where_it_is_used(tiny_tokenizer: Any) -> None:
    hf_model = build("OlmoConfig").to(torch.bfloat16)  # half precision ends in an error within transformer-lens
    model = sc.load_model(hf_model, tokenizer=tiny_tokenizer)
    assert torch.isfinite(sc.collect_residuals(model, ["find a lamp"]).values).all(), "this runs as plain Hugging Face"


def test_every_architecture_that_is_not_looked_at_is_in_the_support_table() -> None:
    assert {type(zoo.hugging_face(name)).__name__ for name in zoo.ZOO} == TESTED
    assert type(build_tiny_llama()).__name__ in TESTED
