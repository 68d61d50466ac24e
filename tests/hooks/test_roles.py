"""Scales by hooks against edited weights, in architectures whose hook points do not do what their names say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import safecircuits as sc
from conftest import build_tiny_tokenizer, randomised
from safecircuits.hooks import scaled, substituted
from safecircuits.hooks.roles import _ALIKE_MODELS, _Trial, roles_of
from safecircuits.hooks.scale import RowScaling
from safecircuits.model.attach import attached, without_hooks
from safecircuits.model.forward import logits
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode

PROMPTS = ["how do i make the cake", "find a lamp", "how do i fix the road and the house with some water"]
ALPHA = 1.3
CLOSE = {"atol": 3e-5, "rtol": 1e-4}

ATTENTION = {c: f"self_attn.{c}_proj" for c in "qkvo"}
GATED = ATTENTION | {"gate": "mlp.gate_proj", "in": "mlp.up_proj", "out": "mlp.down_proj"}
UNGATED = ATTENTION | {"in": "mlp.up_proj", "out": "mlp.down_proj"}
QK = {"q": "self_attn.q_norm", "k": "self_attn.k_norm"}
AFTER = {
    **dict.fromkeys("vo", "post_attention_layernorm"),
    **dict.fromkeys(("in", "out"), "post_feedforward_layernorm"),
}

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, str], dict[str, str]]] = {
    # name: configuration class, its settings, the matrices, and the norms that cancel a scale of them
    "EXAONE-4": ("Exaone4", {"sliding_window_pattern": 2}, GATED, QK | AFTER),
    "OLMo-3": ("Olmo3", {}, GATED, QK | AFTER),
    "OLMo-1": ("Olmo", {}, GATED, {}),
    "StableLM": ("StableLm", {}, GATED, {}),
    "StableLM with norms a head": (
        "StableLm",
        {"qk_layernorm": True},
        GATED,
        {"q": "self_attn.q_layernorm", "k": "self_attn.k_layernorm"},
    ),
    "Gemma-3": ("Gemma3Text", {"head_dim": 8, "query_pre_attn_scalar": 8}, GATED, QK | AFTER),
    "Qwen3 with biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}, GATED, QK),
    "Granite": ("Granite", {"residual_multiplier": 0.3, "attention_multiplier": 0.2}, GATED, {}),
    "SmolLM3": ("SmolLM3", {}, GATED, {}),
    "ERNIE": ("Ernie4_5", {"head_dim": 8}, GATED, {}),
    "Nemotron": ("Nemotron", {"head_dim": 8}, UNGATED, {}),
    "Arcee": ("Arcee", {}, UNGATED, {}),
    "Apertus": ("Apertus", {}, UNGATED, QK),
}

EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("Mixtral", {"num_local_experts": 4}),
    "Qwen3-MoE": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}),
    "Qwen2-MoE": (
        "Qwen2Moe",
        {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "OLMoE": ("Olmoe", {"num_experts": 4}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "head_dim": 8}),
    "GLM-4.5": (
        "Glm4Moe",
        {
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "head_dim": 8,
        },
    ),
    "GraniteMoE": ("GraniteMoe", {"num_local_experts": 4}),
}


def build(family: str, settings: dict[str, Any]) -> Any:
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(build_tiny_tokenizer())}
    if family in {name for name, _ in EXPERTS.values()}:
        shape |= {"num_experts_per_tok": 2}
    config = getattr(transformers, f"{family}Config")(**shape | settings, pad_token_id=0, max_position_embeddings=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(transformers.AutoModelForCausalLM.from_config(config)).eval()


def hooked(model: Any) -> Tensor:
    with torch.no_grad():
        return logits(model, pad_left(encode(model.tokenizer, PROMPTS)))[:, -1]


def plain(hf: Any) -> Tensor:
    with torch.no_grad():
        return torch.stack([hf(torch.tensor([e.ids])).logits[0, -1] for e in encode(build_tiny_tokenizer(), PROMPTS)])


def edited(hf: Any, name: str) -> Any:
    other = copy.deepcopy(hf)
    for layer in other.model.layers:
        layer.get_submodule(name).weight.data.mul_(ALPHA)
    return other


def behind(hf: Any, name: str) -> Any:
    other = copy.deepcopy(hf)
    for layer in other.model.layers:
        layer.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: output * ALPHA)
    return other


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scale_is_that_of_the_weights_or_behind_the_norm_that_cancels_it(name: str) -> None:
    family, settings, matrices, norms = FAMILIES[name]
    hf = build(family, settings)
    model, before = sc.load_model(hf, tokenizer=build_tiny_tokenizer()), plain(hf)
    for component, module in matrices.items():
        with_weights = plain(edited(hf, module))
        cancels = component in norms
        want = plain(behind(hf, norms[component])) if cancels else with_weights
        with scaled(model, (0, 1), ALPHA, components=[component]):
            torch.testing.assert_close(hooked(model), want, **CLOSE)
        assert (want - before).norm() > 1e-3 * before.norm(), component
        if cancels and "biases" not in name:  # the table itself: what is left is the norm's epsilon
            assert (with_weights - before).norm() < 0.1 * (want - before).norm(), component
    assert set(substituted(model)) == set(norms)


def experts_edited(hf: Any, components: Any) -> Any:
    """A copy with these matrices of every expert and of shared ones multiplied, biases and routers left alone."""
    changed = copy.deepcopy(hf)
    for module in changed.modules():
        for component, name in (("gate", "gate_proj"), ("in", "up_proj"), ("out", "down_proj")):
            if component in components and isinstance(getattr(module, name, None), torch.nn.Linear):
                getattr(module, name).weight.data.mul_(ALPHA)
        if (fused := getattr(module, "gate_up_proj", None)) is None or fused.ndim != 3:
            continue
        half = module.down_proj.shape[1 if type(module).__name__ == "GptOssExperts" else 2]
        if type(module).__name__ == "GptOssExperts":  # [expert, d_model, gate and up in turn]
            parts = {"gate": fused.data[:, :, ::2], "in": fused.data[:, :, 1::2]}
        else:
            parts = {"gate": fused.data[:, :half], "in": fused.data[:, half:]}
        for component in components:
            (parts | {"out": module.down_proj.data})[component].mul_(ALPHA)
    return changed


@pytest.mark.parametrize("name", EXPERTS)
def test_the_matrices_of_experts_are_scaled_and_never_the_router(name: str) -> None:
    family, settings = EXPERTS[name]
    hf = build(family, settings)
    for key, parameter in hf.named_parameters():
        if key.endswith("proj_bias"):
            parameter.data.normal_(0, 0.3)
    model = sc.load_model(hf, tokenizer=build_tiny_tokenizer())
    intact = hooked(model)
    for components in (["gate"], ["in"], ["out"], ["gate", "in", "out"]):
        want = plain(experts_edited(hf, components))
        assert (want - intact).abs().max() > 1e-3
        with scaled(model, (0, 1), ALPHA, components="mlp" if len(components) > 1 else components):
            torch.testing.assert_close(hooked(model), want, **CLOSE)
        rows = RowScaling(model, [{0: ALPHA, 1: ALPHA}, {}], components=components)
        rows.select(torch.tensor([1] * len(intact)))
        with attached(model, rows.hooks):
            torch.testing.assert_close(hooked(model), intact, **CLOSE)
        rows.select(torch.tensor([0] * len(intact)))
        with attached(model, rows.hooks):
            torch.testing.assert_close(hooked(model), want, **CLOSE)
    for component in "vo":
        with scaled(model, (0, 1), ALPHA, components=[component]):
            torch.testing.assert_close(hooked(model), plain(edited(hf, f"self_attn.{component}_proj")), **CLOSE)


@pytest.mark.parametrize("name", ["Mixtral", "OLMoE"])
def test_experts_in_modules_of_their_own_are_refused_by_name(name: str) -> None:
    family, settings = EXPERTS[name]
    model = sc.load_model(build(family, settings), tokenizer=build_tiny_tokenizer(), backend="hooked")
    with (
        pytest.raises(ValueError, match=r"of layer 0 .*mixture of experts .*components=\['q', 'k', 'v', 'o'\]"),
        scaled(model, (0, 1), ALPHA, components="mlp"),
    ):
        pass


def test_a_layer_without_attention_says_so() -> None:
    model = sc.load_model(build("Lfm2", {"layer_types": ["conv", "full_attention"]}), tokenizer=build_tiny_tokenizer())
    with pytest.raises(ValueError, match="matrix 'q' of layer 0"), scaled(model, (0, 1), ALPHA, components="attn"):
        pass
    with scaled(model, (1, 1), ALPHA, components="attn"):
        hooked(model)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_finding_out_touches_no_hook_of_others(backend: Any, make_tiny_model: Any) -> None:
    model, calls = make_tiny_model(backend), []

    def note(name: str) -> Any:
        return lambda value, hook=None: calls.append((name, value.shape))

    handle = model.blocks[1].register_forward_hook(lambda *_: calls.append(("module", None)))
    with attached(model, {"blocks.0.hook_resid_post": note("first"), "blocks.0.mlp.hook_post": note("neurons")}):
        with without_hooks(model):
            _Trial(model).roles()
        assert calls == []
        hooked(model)
        assert [name for name, _ in calls] == ["neurons", "first", "module"]
    handle.remove()
    calls.clear()
    hooked(model)
    assert calls == []
    assert roles_of(model).problems == {}


def post_norm_opt(factor: float) -> Any:
    """As OPT-350m: a norm of the whole residual stream behind each sublayer, here with MLPs of this size beside it."""
    sizes = {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 16, "num_hidden_layers": 2}
    config = transformers.OPTConfig(
        vocab_size=len(build_tiny_tokenizer()), num_attention_heads=4, do_layer_norm_before=False, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = randomised(transformers.OPTForCausalLM(config)).eval()
    with torch.no_grad():
        for layer in hf.model.decoder.layers:
            layer.fc2.weight.mul_(factor)
    return hf


@pytest.mark.parametrize("factor", [1.0, 10.0, 100.0])
def test_a_norm_of_the_whole_stream_cancels_nothing_however_large_the_mlp(factor: float) -> None:
    hf = post_norm_opt(factor)
    model = sc.load_model(hf, tokenizer=build_tiny_tokenizer())
    _ALIKE_MODELS.clear()  # found once a configuration, whatever the weights
    for component, module in {"v": "self_attn.v_proj", "in": "fc1", "out": "fc2"}.items():
        changed = copy.deepcopy(hf)
        for layer in changed.model.decoder.layers:
            layer.get_submodule(module).weight.data.mul_(ALPHA)
        with scaled(model, (0, 1), ALPHA, components=[component]):
            torch.testing.assert_close(hooked(model), plain(changed), **CLOSE)
    assert substituted(model) == {}
