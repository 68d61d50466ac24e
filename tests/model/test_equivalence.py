"""A model that computes something else than Hugging Face is refused when it is made: what is looked at."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch

import configurations
import safecircuits as sc
import zoo
from conftest import build_tiny_llama
from safecircuits.base.notices import Notice
from safecircuits.model import equivalence
from safecircuits.model.bridge import bridge_of
from safecircuits.model.equivalence import Verdict, compared, require_equivalent
from safecircuits.model.miniature import TOKENS, miniature_of

both = pytest.mark.parametrize("backend", zoo.backends())


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "_VERDICTS", {})


def load(hf_model: Any, backend: str = "bridge") -> Any:
    return sc.load_model(hf_model, tokenizer=zoo.tokenizer(), backend=backend)


def without(*names: str) -> Any:
    """Makes bridges, but of a configuration in which these settings are off."""

    def make(hf_model: Any) -> Any:
        changed = copy.deepcopy(hf_model.config)
        for name in names:
            setattr(changed, name, None)
        other = type(hf_model)(changed).eval()
        other.load_state_dict(hf_model.state_dict())
        return bridge_of(other)

    return make


def test_each_case_is_told_apart() -> None:
    hf_model = build_tiny_llama()
    bridge = bridge_of(hf_model)
    assert compared(bridge, hf_model, (20, 7)) == Verdict()
    layer = bridge.original_model.model.layers[1]

    def found(change: Any) -> str:
        handle = layer.register_forward_hook(change, with_kwargs=True)
        try:
            return compared(bridge, hf_model, (20, 7)).wrong or ""
        finally:
            handle.remove()

    def padded(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return output * 1.02 if len(output) > 1 else None

    def cached(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return output * 1.02 if output.shape[1] == 1 else None

    def broken(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return output * float("nan")

    def failing(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        raise KeyError("a part that is not there")

    begins = r"transformer-lens's bridge of this LlamaForCausalLM does not compute what Hugging Face does: "
    off = begins + r"the residual stream after layer 2 is off by [\d.]+%"
    assert re.match(off + r" \(prompts of 20 and 7 tokens padded in one batch\); ", found(padded))
    assert re.match(off + r" \(a prompt alone, decoding with a cache\); ", found(cached))
    assert re.match(begins + r".* after layer 2 is not finite \(a prompt alone\); ", found(broken))
    assert re.match(begins + r"it does not run \('a part that is not there'\) \(a prompt alone\); ", found(failing))
    assert "try backend='hooked' or another version of transformer-lens" in found(broken)


def test_another_scale_of_the_logits_is_seen() -> None:
    hf_model = configurations.build("StableLM")
    bridge = bridge_of(hf_model)
    require_equivalent(bridge, hf_model, bridge_of)
    bridge.original_model.lm_head.register_forward_hook(lambda *args: args[-1] * 1.02)
    assert "the logits are off by 2.0%" in str(compared(bridge, hf_model, (9, 4)).wrong)


@both
def test_a_configuration_is_compared_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_model = build_tiny_llama()
    passes: list[int] = []
    original = equivalence._alone
    monkeypatch.setattr(equivalence, "_alone", lambda *args: passes.append(1) or original(*args))
    load(hf_model, backend)
    first = len(passes)
    load(build_tiny_llama(seed=1), backend)  # other weights, the same configuration
    assert len(passes) == first > 0
    load(build_tiny_llama(rope_parameters={"rope_theta": 500.0, "rope_type": "default"}), backend)
    assert len(passes) == 2 * first


def test_a_refusal_is_remembered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hf_model = configurations.build("Falcon, alibi")
    with pytest.raises(ValueError, match="off by") as first:
        load(hf_model)
    monkeypatch.setattr(equivalence, "compared", lambda *args: pytest.fail("was compared again"))
    with pytest.raises(ValueError, match="off by") as second:
        load(hf_model)
    assert str(first.value) == str(second.value)


def test_half_precision_hides_nothing() -> None:
    """Of what bfloat16 rounds away, a small model in float32 shows it."""
    hf_model = configurations.build("GPT-2, unscaled attention")
    with torch.no_grad():
        for block in hf_model.transformer.h:
            block.attn.c_attn.weight[:, :64] *= 0.05  # the scale of scores this small changes little
    hf_model = hf_model.to(torch.bfloat16)
    assert compared(bridge_of(hf_model), hf_model, (20, 7)) == Verdict()
    with pytest.raises(ValueError, match="in a small model of its settings"):
        load(hf_model)
    load(configurations.build("GPT-2").to(torch.bfloat16))


@pytest.mark.parametrize("name", ["OLMo", "StableLM", "Starcoder2", "Mixtral", "Phi-3, longrope", "Gemma-2", "Qwen3"])
def test_right_ones_in_half_precision(name: str) -> None:
    model = load(configurations.build(name).to(torch.bfloat16))
    assert torch.isfinite(sc.collect_residuals(model, ["find a lamp"]).values).all()


def test_a_long_window_is_compared_on_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "_SMALL", 0)  # as if it were large
    hf_model = build_window(40)
    assert compared(bridge_of(hf_model), hf_model, (12, 7)) == Verdict()
    assert compared(without("sliding_window")(hf_model), hf_model, (12, 7)) == Verdict(), "twelve tokens do not show it"
    require_equivalent(bridge_of(hf_model), hf_model, bridge_of)
    monkeypatch.setattr(equivalence, "_VERDICTS", {})
    make = without("sliding_window")
    with pytest.raises(
        ValueError, match=r"in a small model of its settings: the residual stream after layer 0 is off by"
    ):
        require_equivalent(make(hf_model), hf_model, lambda hf: make(hf))


@pytest.mark.skipif("hooked" not in zoo.backends(), reason="transformer-lens 4 has no HookedTransformer")
def test_where_no_small_model_fits_that_is_said_and_nothing_refused() -> None:
    """A HookedTransformer of GPT-2 takes an MLP of four times the width alone, which the small model has not."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=128, vocab_size=len(zoo.tokenizer()), n_positions=64)
    with pytest.warns(Notice, match="no small model of its configuration can be built"):
        load(GPT2LMHeadModel(config).to(torch.bfloat16), "hooked")


def build_window(length: int) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MistralForCausalLM(
        MistralConfig(vocab_size=len(zoo.tokenizer()), num_key_value_heads=2, sliding_window=length, **sizes)
    ).eval()


PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "Mistral": {"sliding_window": 4096},
    "Gemma2": {"pad_token_id": 0},
    "Gemma3Text": {"hidden_size": 2560, "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4},
    "Phi3": {"sliding_window": 2047, "pad_token_id": 32000},
    "Qwen2": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
    "GPT2": {},
    "GPTNeoX": {},
    "Falcon": {},
    "Bloom": {"hidden_size": 1024, "n_layer": 24, "n_head": 16},
    "Starcoder2": {"sliding_window": 4096},
    "GptOss": {},
}  # fmt: skip


def head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kinds(config: Any) -> set[str]:
    return set(getattr(config, "layer_types", None) or [])


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_sizes_have_a_small_model_of_the_same_settings(kind: str) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**PUBLISHED[kind])
    with torch.device("meta"):
        large = transformers.AutoModelForCausalLM.from_config(config)
    small = miniature_of(large)
    assert small is not None
    assert small.config.num_hidden_layers < config.num_hidden_layers
    assert len(set(getattr(small.config, "layer_types", None) or [])) == len(
        set(getattr(config, "layer_types", None) or [])
    )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (
        getattr(small.config, "head_dim", None) or small.config.hidden_size // small.config.num_attention_heads
    ) == head
    assert (getattr(small.config, "sliding_window", None) or 0) < TOKENS / 3
    assert compared(bridge_of(small), small, (TOKENS, TOKENS // 3)) == Verdict()


def test_a_model_that_is_not_finite_itself_is_said_to_be_unknown() -> None:
    hf_model = build_tiny_llama()
    with torch.no_grad():
        hf_model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.warns(Notice, match="gives values that are not finite"):
        load(hf_model)


def test_dropout_is_no_difference_and_modes_stay() -> None:
    hf_model = configurations.build("Starcoder2").train()
    hf_model.config.residual_dropout = 0.5
    load(hf_model)
    assert all(module.training for module in hf_model.modules())


class TestReady:
    """A bridge that somebody else has made of a model, which is rewired by that."""

    def test_a_wrong_one_is_refused(self) -> None:
        bridge = bridge_of(configurations.build("Falcon, alibi"))
        bridge.tokenizer = zoo.tokenizer()
        with pytest.raises(ValueError, match="layer 0 is off by"):
            sc.load_model(bridge)

    def test_a_right_one_is_returned_itself(self) -> None:
        bridge = bridge_of(configurations.build("Llama, yarn"))
        bridge.tokenizer = zoo.tokenizer()
        assert sc.load_model(bridge) is bridge

    def test_hooks_are_no_fault_of_the_bridge(self) -> None:
        bridge = bridge_of(configurations.build("Llama"))
        bridge.tokenizer = zoo.tokenizer()
        with sc.attached(bridge, {"blocks.0.hook_resid_post": lambda resid: resid * 2}):
            assert sc.load_model(bridge) is bridge
            sc.collect_residuals(bridge, ["find a lamp"])
