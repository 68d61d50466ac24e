"""Pruned checkpoints against hooks: the same logits, reloaded by plain transformers, and smaller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import safecircuits as sc
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode
from safecircuits.units.prune import lowest_even, prune_units

PROMPTS = ("how do i make the cake", "find a lamp", "how do i fix the road and the house with some water")
DATA = sc.PromptSet("d", PROMPTS, ("sure take some water", "here it is .", "you take the wood"))
SHAPE = sc.ModelShape("LlamaForCausalLM", n_layers=3, d_model=32, d_mlp=48, n_heads=4, n_kv_heads=2)
EVEN = FreezeMask.of_units(
    {"mlp": {i: range(i, 48, 4) for i in range(3)}, "attn": dict.fromkeys(range(3), (2, 3))}, SHAPE
)
UNEVEN = FreezeMask.of_units({"mlp": {0: (1, 5, 9), 2: range(40)}, "attn": {0: (0,), 1: (2, 3)}}, SHAPE)
ONE_NEURON, ONE_HEAD = (FreezeMask.of_units(units, SHAPE) for units in ({"mlp": {1: (0,)}}, {"attn": {0: (1,)}}))

both = pytest.mark.parametrize("backend", ["bridge", "hooked"])


def outputs(model: Any) -> torch.Tensor:
    batch = pad_left(encode(model.tokenizer, PROMPTS))
    with torch.no_grad():
        return logits(model, batch)[batch.attention_mask.bool()]


def reloaded(folder: Any, tokenizer: Any) -> Any:
    return load_model(AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer)


class TestPrune:
    @both
    @pytest.mark.parametrize("units", [EVEN, UNEVEN, ONE_NEURON, ONE_HEAD])
    def test_reloaded_checkpoint_equals_the_hooks(
        self, backend: Any, units: FreezeMask, make_tiny_model: Any, tiny_tokenizer: Any, tmp_path: Any
    ) -> None:
        model = make_tiny_model(backend)
        intact = outputs(model)
        with sc.ablated(model, units):
            want = outputs(model)
        folder = prune_units(model, units).save(tmp_path / "small")
        torch.testing.assert_close(outputs(reloaded(folder, tiny_tokenizer)), want, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(want, intact, atol=1e-2)
        assert torch.equal(outputs(model), intact)

    def test_even_groups_leave_no_filling(self, tiny_bridge: Any, tmp_path: Any) -> None:
        pruned = prune_units(tiny_bridge, EVEN)
        config = pruned.hf_model.config
        assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (36, 2, 1)
        assert pruned.filling == {"mlp": 0, "attn": 0}
        # A neuron has 96 parameters, and a query head 512, of which each layer also loses one of two K/V heads.
        assert pruned.parameters_before - pruned.parameters_after == 3 * (12 * 96 + 2 * 512 + 512)

    def test_the_same_number_from_every_layer_leaves_none_either(self, tiny_bridge: Any) -> None:
        scores = sc.score_units(tiny_bridge, DATA)
        units = lowest_even(scores.scores, scores.shape, neurons=20, kv_heads=1)
        for layer in range(3):
            lowest = scores.scores["mlp"][layer].argsort()[:20].tolist()
            assert units.members("mlp")[layer] == tuple(sorted(lowest))
            heads = scores.scores["attn"][layer]
            assert units.members("attn")[layer] == ((0, 1) if heads[:2].sum() < heads[2:].sum() else (2, 3))
        pruned = prune_units(tiny_bridge, units)
        assert pruned.filling == {"mlp": 0, "attn": 0}
        with sc.ablated(tiny_bridge, units):
            want = outputs(tiny_bridge)
        got = outputs(load_model(pruned.hf_model, tokenizer=tiny_bridge.tokenizer))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="cannot take 3 of the 2 key/value heads"):
            lowest_even(scores.scores, scores.shape, kv_heads=3)

    def test_uneven_groups_are_filled_up_and_counted(self, tiny_bridge: Any) -> None:
        pruned = prune_units(tiny_bridge, UNEVEN)
        assert pruned.hf_model.config.intermediate_size == 48
        assert pruned.filling["mlp"] == 43
        assert pruned.n_units == 46

    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        mlp=st.lists(st.sets(st.integers(0, 47), max_size=47), min_size=3, max_size=3),
        attn=st.lists(st.sets(st.integers(0, 3), max_size=4), min_size=3, max_size=3),
    )
    def test_any_selection(self, mlp: list[set[int]], attn: list[set[int]], tiny_bridge: Any) -> None:
        units = FreezeMask.of_units({"mlp": dict(enumerate(mlp)), "attn": dict(enumerate(attn))}, SHAPE)
        with sc.ablated(tiny_bridge, units):
            want = outputs(tiny_bridge)
        got = outputs(load_model(prune_units(tiny_bridge, units).hf_model, tokenizer=tiny_bridge.tokenizer))
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)

    @both
    def test_compensation_is_the_mean_ablation(self, backend: Any, make_tiny_model: Any, tmp_path: Any) -> None:
        model = make_tiny_model(backend)
        means = sc.score_units(model, DATA, tokens="all").mean
        with sc.ablated(model, UNEVEN, to=means):
            want = outputs(model)
        folder = prune_units(model, UNEVEN, compensate=means).save(tmp_path / "small")
        torch.testing.assert_close(outputs(reloaded(folder, model.tokenizer)), want, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("family", ["Olmo2", "Olmo3", "StableLm", "Qwen3", "Gemma3"])
    def test_heads_that_share_a_norm_are_refused_and_neurons_are_not(self, family: str, tiny_tokenizer: Any) -> None:
        import transformers

        from conftest import randomised

        coupled = {"StableLm": {"qk_layernorm": True}, "Qwen3": {"head_dim": 8}, "Gemma3": {"head_dim": 8}}
        settings: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        settings |= {"num_key_value_heads": 2, "vocab_size": len(tiny_tokenizer), **coupled.get(family, {})}
        config = getattr(transformers, f"{family}{'Text' * (family == 'Gemma3')}Config")(**settings, pad_token_id=0)
        hf = randomised(transformers.AutoModelForCausalLM.from_config(config)).eval()
        model = load_model(hf, tokenizer=tiny_tokenizer)
        both_sites: dict[str, Any] = {"neurons": {"mlp": {0: (1, 5)}}, "heads": {"attn": {0: (0, 1)}}}
        for what, indices in both_sites.items():
            units = FreezeMask.of_units(indices, model)
            if what == "heads" and family in ("Olmo2", "Olmo3", "StableLm"):
                with pytest.raises(ValueError, match="computes something else than with them removed by hooks"):
                    prune_units(model, units)
                continue
            with sc.ablated(model, units):
                want = outputs(model)
            got = outputs(load_model(prune_units(model, units).hf_model, tokenizer=tiny_tokenizer))
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    def test_the_embedded_model(self, tmp_path: Any) -> None:
        model = sc.load_model("aligned")
        units = FreezeMask.of_units(
            {"mlp": {i: range(0, 384, 3) for i in range(8)}, "attn": dict.fromkeys(range(8), (0, 1, 5))}, model
        )
        prompts = sc.organism.prompts("malicious", "test", 8)
        with sc.ablated(model, units):
            want = sc.generate(model, prompts, max_new_tokens=6).texts
        folder = prune_units(model, units).save(tmp_path / "small")
        assert sc.generate(sc.load_model(folder), prompts, max_new_tokens=6).texts == want

    def test_an_architecture_without_the_projections(self, tiny_tokenizer: Any) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=len(tiny_tokenizer)))
        with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no linear map 'mlp\.gate_proj'"):
            prune_units(gpt2, FreezeMask.layers(0))
