"""Models that cannot be used as they are: each is refused with one error that says what to do."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

import safecircuits as sc
import zoo
from safecircuits.model.sites import ModelShape

PROMPTS = ["find a lamp", "make tea"]
hooked_only = pytest.mark.skipif("hooked" not in zoo.backends(), reason="transformer-lens 4 has no HookedTransformer")


def folded_hooked() -> Any:
    model = zoo.load(zoo.ZOO["Llama-3"].build(), "hooked")
    model.process_weights_(fold_ln=True)
    return model


def compatibility_bridge() -> Any:
    model = zoo.load(zoo.ZOO["GPT-2"].build(), "bridge")
    model.enable_compatibility_mode()
    return model


def processed_bridge() -> Any:
    model = zoo.load(zoo.ZOO["Llama-3"].build(), "bridge")
    model.process_weights(fold_ln=True)
    return model


@pytest.mark.parametrize("make", [folded_hooked, compatibility_bridge, processed_bridge])
def test_a_processed_model_is_refused_wherever_its_weights_matter(make: Any) -> None:
    model = make()
    uses = [
        lambda: sc.load_model(model),
        lambda: sc.score_units(model, sc.PromptSet("p", tuple(PROMPTS)), tokens="prompt"),
        lambda: sc.FreezeMask.of_units({"mlp": {0: [1]}}, ModelShape.of(model)).parameter_masks(model),
        lambda: sc.scaled(model, (0, 1), 1.1).__enter__(),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"weights were processed.*load it unprocessed"):
            use()


@hooked_only
def test_centred_writing_weights_are_noticed() -> None:
    model = zoo.load(zoo.ZOO["GPT-2"].build(), "hooked")
    assert sc.load_model(model) is model
    model.process_weights_(fold_ln=False, center_writing_weights=True, center_unembed=False)
    with pytest.raises(ValueError, match=r"writing weights were centred.*from_pretrained_no_processing"):
        sc.load_model(model)


@pytest.mark.parametrize("backend", zoo.backends())
def test_a_ready_model_on_meta(backend: str) -> None:
    model = zoo.load(zoo.ZOO["Llama-3"].build(), backend)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = torch.nn.Parameter(parameter.to("meta"))
    with pytest.raises(ValueError, match=r"on the meta device.*load it with weights first"):
        sc.load_model(model)


class TestUnknownArchitecture:
    def test_one_without_a_bridge(self) -> None:
        from transformers import CTRLConfig, CTRLLMHeadModel

        hf = CTRLLMHeadModel(CTRLConfig(vocab_size=70, n_positions=64, n_embd=32, dff=48, n_layer=2, n_head=4))
        with pytest.raises(ValueError, match="cannot make a bridge of this CTRLLMHeadModel: Unsupported architecture"):
            zoo.load(hf, "bridge")

    def test_an_encoder_decoder(self) -> None:
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(vocab_size=70, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        with pytest.raises(ValueError, match="T5ForConditionalGeneration is not a decoder-only language model"):
            zoo.load(T5ForConditionalGeneration(config), "bridge")

    def test_a_variant_that_the_bridge_cannot_split(self) -> None:
        with pytest.raises(ValueError, match="cannot make a bridge of this FalconForCausalLM"):
            zoo.load(zoo.ZOO["Falcon-40B"].build(), "bridge")

    @hooked_only
    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("Falcon-7B", {}, "no HookedTransformer exists for FalconForCausalLM; use backend='bridge'"),
            ("Gemma-1", {}, "of GemmaForCausalLM by official name only, .*: use backend='bridge', or pass what"),
            ("Gemma-2", {}, "of Gemma2ForCausalLM by official name only"),
            ("Gemma-3", {}, "of Gemma3ForCausalLM by official name only"),
            ("OLMo-2", {}, "of Olmo2ForCausalLM by official name only"),
            ("Llama with biases", {}, "no place for model.layers.0.self_attn.q_proj.bias; use backend='bridge'"),
            ("GPT-2", {"n_inner": 48}, "do not fit .* use backend='bridge' .size mismatch for blocks.0.mlp.W_in"),
        ],
    )
    def test_one_without_a_hooked_transformer(self, name: str, changes: Any, message: str) -> None:
        member = zoo.ZOO[name]

        def config() -> Any:
            made = member.config()
            for key, value in changes.items():
                setattr(made, key, value)
            return made

        with pytest.raises(ValueError, match=message):
            zoo.load(replace(member, config=config).build(), "hooked")


@pytest.mark.skipif("hooked" in zoo.backends(), reason="this transformer-lens has HookedTransformer")
def test_the_hooked_backend_on_transformer_lens_4() -> None:
    with pytest.raises(ValueError, match=r"needs transformer-lens 3.x.*use backend='bridge'"):
        zoo.load(zoo.ZOO["Llama-3"].build(), "hooked")


@pytest.mark.parametrize("name", ["GPT-2", "Falcon-7B"])
def test_the_width_of_the_mlp_is_the_checkpoints(name: str) -> None:
    member = zoo.ZOO[name]

    def config() -> Any:
        made = member.config()
        setattr(made, "n_inner" if name == "GPT-2" else "ffn_hidden_size", 48)
        return made

    assert ModelShape.of(zoo.load(replace(member, config=config).build(), "bridge")).d_mlp == 48


def test_a_chat_template_that_is_asked_for_must_be_there() -> None:
    bare = copy.deepcopy(zoo.tokenizer())
    bare.chat_template = None
    model = sc.load_model(zoo.hugging_face("Llama-3"), tokenizer=bare)
    assert sc.collect_residuals(model, PROMPTS).values.shape == (zoo.LAYERS, 2, zoo.D_MODEL)
    for use in (
        lambda: sc.collect_residuals(model, PROMPTS, template="chat"),
        lambda: sc.localize(model, PROMPTS, (0, 1), alpha=1.1, template="chat"),
        lambda: sc.score_units(model, sc.PromptSet("p", tuple(PROMPTS)), tokens="prompt", template="chat"),
    ):
        with pytest.raises(ValueError, match="tokenizer has no chat template; use template='alpaca'"):
            use()
