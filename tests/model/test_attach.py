"""Collecting, scaling and ablating by hooks against plain Hugging Face computations with edited weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import safecircuits as sc
from conftest import randomised
from safecircuits.hooks.scale import COMPONENT_SETS
from safecircuits.model.forward import logits, run
from safecircuits.model.load import load_model
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode

PROMPTS = [
    "how do i make the cake",
    "find a lamp",
    "how do i fix the road and the house with some water",
    "a dog",
]
LLAMA_MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "in": "mlp.up_proj",
    "out": "mlp.down_proj",
}

both = pytest.mark.parametrize("backend", ["bridge", "hooked"])


def last_logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return logits(model, pad_left(encode(tokenizer, PROMPTS)))[:, -1]


def solo_hidden_states(hf_model: Any, tokenizer: Any) -> torch.Tensor:
    """Hugging Face's hidden states at the last token, one prompt at a time: [layer + 1, prompt, d_model]."""
    with torch.no_grad():
        alone = [
            hf_model(torch.tensor([e.ids]), output_hidden_states=True).hidden_states for e in encode(tokenizer, PROMPTS)
        ]
    return torch.stack([torch.stack([h[0, -1] for h in states]) for states in alone], dim=1)


class TestCollect:
    @both
    def test_equals_hugging_face_hidden_states(self, backend: str, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        want = solo_hidden_states(tiny_llama_hf, tiny_tokenizer)
        got = sc.collect_residuals(model, PROMPTS)
        assert got.layers == (0, 1, 2)
        torch.testing.assert_close(got.values[:-1], want[1:-1], atol=2e-4, rtol=1e-5)
        parity = sc.collect_residuals(model, PROMPTS, final_norm=True)
        torch.testing.assert_close(parity.values, want[1:], atol=2e-4, rtol=1e-5)

    @both
    def test_batching_and_order_do_not_matter(self, backend: str, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend)
        together = sc.collect_residuals(model, PROMPTS).values
        one_by_one = sc.collect_residuals(model, PROMPTS, max_tokens=1).values
        backwards = sc.collect_residuals(model, PROMPTS[::-1]).values.flip(1)
        torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(together, backwards, atol=1e-4, rtol=1e-5)

    def test_some_layers_only(self, tiny_bridge: Any) -> None:
        every, some = (
            sc.collect_residuals(tiny_bridge, PROMPTS),
            sc.collect_residuals(tiny_bridge, PROMPTS, layers=[2, 0]),
        )
        torch.testing.assert_close(some.values, every.values[[2, 0]])
        with pytest.raises(ValueError, match="layer 3 is outside the model, whose layers are 0 to 2"):
            sc.collect_residuals(tiny_bridge, PROMPTS, layers=[3])

    def test_a_broken_layer_is_named(self, tiny_bridge: Any) -> None:
        with torch.no_grad():
            tiny_bridge.blocks[1].mlp.W_out[0, 0] = float("nan")
        with pytest.raises(FloatingPointError, match="after layer 1 is not finite"):
            sc.collect_residuals(tiny_bridge, PROMPTS)


class TestScale:
    @both
    @pytest.mark.parametrize("components", list(COMPONENT_SETS))
    def test_equals_scaled_weights(
        self, backend: str, components: str, tiny_llama_hf: Any, tiny_tokenizer: Any
    ) -> None:
        edited = copy.deepcopy(tiny_llama_hf)
        with torch.no_grad():
            for layer in (1, 2):
                for component in COMPONENT_SETS[components]:
                    edited.model.layers[layer].get_submodule(LLAMA_MATRICES[component]).weight.mul_(1.3)
        want = last_logits(load_model(edited, tokenizer=tiny_tokenizer), tiny_tokenizer)
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        before = last_logits(model, tiny_tokenizer)
        with sc.scaled(model, (1, 2), 1.3, components=components):
            torch.testing.assert_close(last_logits(model, tiny_tokenizer), want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(last_logits(model, tiny_tokenizer), before, atol=0, rtol=0)
        assert (want - before).abs().max() > 0.1, "the edit must be large enough to notice"

    def test_a_power_of_two_is_bit_identical(self, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        edited = copy.deepcopy(tiny_llama_hf)
        with torch.no_grad():
            for name in LLAMA_MATRICES.values():
                edited.model.layers[1].get_submodule(name).weight.mul_(0.5)
        model = load_model(tiny_llama_hf, tokenizer=tiny_tokenizer)
        with sc.scaled(model, (1, 1), 0.5):
            assert torch.equal(
                last_logits(model, tiny_tokenizer),
                last_logits(load_model(edited, tokenizer=tiny_tokenizer), tiny_tokenizer),
            )

    @both
    def test_biases_are_not_scaled(self, backend: str, tiny_tokenizer: Any) -> None:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        hf_model = randomised(Qwen2ForCausalLM(config)).eval()
        assert hf_model.model.layers[0].self_attn.v_proj.bias.abs().max() > 0.1
        edited = copy.deepcopy(hf_model)
        with torch.no_grad():
            for component in ("q", "k", "v"):
                edited.model.layers[0].get_submodule(LLAMA_MATRICES[component]).weight.mul_(1.4)
        want = last_logits(load_model(edited, tokenizer=tiny_tokenizer), tiny_tokenizer)
        model = load_model(hf_model, backend=backend, tokenizer=tiny_tokenizer)
        with sc.scaled(model, (0, 0), 1.4, components=["q", "k", "v"]):
            torch.testing.assert_close(last_logits(model, tiny_tokenizer), want, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("family", ["gpt2", "pythia"])
    def test_ungated_models_with_biases_everywhere(self, family: str, tiny_tokenizer: Any) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

        torch.manual_seed(0)
        n = len(tiny_tokenizer)
        if family == "gpt2":
            hf_model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=4, n_positions=64))
            blocks, matrices = "transformer.h", ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        else:
            neox = GPTNeoXConfig(
                vocab_size=n, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
            )
            hf_model = GPTNeoXForCausalLM(neox)
            blocks = "gpt_neox.layers"
            matrices = (
                "attention.query_key_value",
                "attention.dense",
                "mlp.dense_h_to_4h",
                "mlp.dense_4h_to_h",
            )
        hf_model = randomised(hf_model).eval()
        edited = copy.deepcopy(hf_model)
        with torch.no_grad():
            for name in matrices:
                edited.get_submodule(f"{blocks}.1.{name}").weight.mul_(1.3)
        want = last_logits(load_model(edited, tokenizer=tiny_tokenizer), tiny_tokenizer)
        model = load_model(hf_model, tokenizer=tiny_tokenizer)
        before = last_logits(model, tiny_tokenizer)
        with sc.scaled(model, (1, 1), 1.3):
            torch.testing.assert_close(last_logits(model, tiny_tokenizer), want, atol=1e-4, rtol=1e-4)
        assert (want - before).abs().max() > 0.01

    def test_one_alpha_a_layer(self, tiny_bridge: Any, tiny_tokenizer: Any) -> None:
        with sc.scaled(tiny_bridge, {0: 1.2, 2: 0.9}):
            together = last_logits(tiny_bridge, tiny_tokenizer)
        with sc.scaled(tiny_bridge, (0, 0), 1.2), sc.scaled(tiny_bridge, (2, 2), 0.9):
            torch.testing.assert_close(last_logits(tiny_bridge, tiny_tokenizer), together)

    @pytest.mark.parametrize(
        ("layers", "alpha", "components", "message"),
        [
            ((1, 3), 1.1, "all", r"\[1, 3\] is outside the model, whose layers are 0 to 2"),
            ((2, 1), 1.1, "all", r"\[2, 1\] is not 0 <= first <= last"),
            ((0, 1), 0.0, "all", "positive, finite number, not 0.0"),
            ((0, 1), float("nan"), "all", "finite number, not nan"),
            ((0, 1), None, "all", "alpha is missing"),
            ((0, 1), 1.1, "qkv", "components 'qkv' is not one of"),
            ((0, 1), 1.1, ["q", "w"], "not a non-empty choice of q, k, v"),
        ],
    )
    def test_bad_input(self, layers: Any, alpha: Any, components: Any, message: str, tiny_bridge: Any) -> None:
        with (
            pytest.raises(ValueError, match=message),
            sc.scaled(tiny_bridge, layers, alpha, components=components),
        ):
            pass


class TestAblate:
    @both
    def test_zeroing_equals_zeroed_weights(self, backend: str, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        edited = copy.deepcopy(tiny_llama_hf)
        with torch.no_grad():
            edited.model.layers[0].mlp.down_proj.weight[:, [3, 40]] = 0
            edited.model.layers[2].self_attn.o_proj.weight[:, 8:16] = 0  # head 1, d_head 8
        want = last_logits(load_model(edited, tokenizer=tiny_tokenizer), tiny_tokenizer)
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        with sc.ablated(model, sc.FreezeMask.of_units({"mlp": {0: (3, 40)}, "attn": {2: (1,)}}, model)):
            torch.testing.assert_close(last_logits(model, tiny_tokenizer), want, atol=1e-4, rtol=1e-4)

    @both
    def test_replacing_by_the_mean(self, backend: str, make_tiny_model: Any, tiny_tokenizer: Any) -> None:
        model = make_tiny_model(backend)
        scores = sc.score_units(model, sc.PromptSet("p", tuple(PROMPTS)), tokens="prompt")
        units = sc.FreezeMask.of_units({"mlp": {0: (3,)}, "attn": {1: (2,)}}, model)
        with sc.ablated(model, units, to=scores.mean):
            replaced = last_logits(model, tiny_tokenizer)
        assert not torch.allclose(replaced, last_logits(model, tiny_tokenizer), atol=1e-3)
        seen: dict[str, torch.Tensor] = {}

        def see(name: str) -> Any:
            return lambda activation: seen.update({name: activation.clone()})

        names = ["blocks.0.mlp.hook_post", "blocks.1.attn.hook_z"]
        with (
            torch.no_grad(),
            sc.ablated(model, units, to=scores.mean),
            sc.attached(model, {name: see(name) for name in names}),
        ):
            run(model, pad_left(encode(tiny_tokenizer, PROMPTS)))
        mean = scores.mean
        torch.testing.assert_close(seen[names[0]][..., 3], mean["mlp"][0][3].expand(seen[names[0]].shape[:2]))
        assert torch.equal(seen[names[1]][0, 0, 2], mean["attn"][1][2])


class TestAttach:
    @both
    def test_foreign_hooks_stay_in_force(self, backend: str, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend)
        plain = sc.collect_residuals(model, PROMPTS).values
        calls = []

        def user_hook(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            calls.append(hook)
            return activation * 0

        model.add_hook("blocks.0.hook_mlp_out", user_hook)
        assert not torch.allclose(sc.collect_residuals(model, PROMPTS).values[0], plain[0])
        before = len(calls)
        sc.collect_residuals(model, PROMPTS)
        assert len(calls) > before > 0, "our hooks go, the user's stays"
        model.reset_hooks()
        assert torch.equal(sc.collect_residuals(model, PROMPTS).values, plain)

    def test_a_misspelt_name_is_refused_with_a_hint(self, tiny_bridge: Any) -> None:
        with (
            pytest.raises(
                ValueError,
                match=r"no hook point 'blocks.0.hook_resid_pots'; close to it: blocks.0.hook_resid_post",
            ),
            sc.attached(tiny_bridge, {"blocks.0.hook_resid_pots": lambda t: None}),
        ):
            pass

    def test_a_hook_that_never_fires_is_an_error(self, tiny_bridge: Any, tiny_tokenizer: Any) -> None:
        hooks = {
            "blocks.0.attn.hook_hidden_states": lambda t: None,
            "blocks.0.hook_resid_post": lambda t: None,
        }
        assert set(hooks) <= set(tiny_bridge.hook_dict)
        with (
            pytest.raises(RuntimeError, match=r"'blocks\.0\.attn\.hook_hidden_states' never fired"),
            sc.attached(tiny_bridge, hooks),
        ):
            last_logits(tiny_bridge, tiny_tokenizer)

    def test_hooks_are_gone_after_an_exception(self, tiny_bridge: Any, tiny_tokenizer: Any) -> None:
        before = last_logits(tiny_bridge, tiny_tokenizer)
        with pytest.raises(KeyError), sc.scaled(tiny_bridge, (0, 1), 2.0):
            raise KeyError("a user's mistake")
        assert torch.equal(last_logits(tiny_bridge, tiny_tokenizer), before)


def test_the_two_backends_agree_on_everything_above(make_tiny_model: Any) -> None:
    bridge, hooked = make_tiny_model("bridge"), make_tiny_model("hooked")
    torch.testing.assert_close(
        sc.collect_residuals(bridge, PROMPTS).values,
        sc.collect_residuals(hooked, PROMPTS).values,
        atol=2e-4,
        rtol=1e-5,
    )
