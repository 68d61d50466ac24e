"""Work that is shared between prompts and configurations: counted, and equal to the plain way on both backends.

The plain way is the same function with a hook of somebody else's on the model, which switches all sharing off.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import safecircuits as sc
import zoo
from conftest import build_tiny_llama, randomised
from safecircuits.behavior.detectors import DETECTORS
from safecircuits.behavior.early import EarlyVerdict, decided
from safecircuits.behavior.incoherence import degenerate
from safecircuits.behavior.scaled_completions import generate_scaled
from safecircuits.behavior.speculative import worth_feeding
from safecircuits.hooks.branching import Branches
from safecircuits.hooks.plain import plain_model
from safecircuits.hooks.roles import roles_of
from safecircuits.hooks.scale import RowScaling
from safecircuits.layers.grid import scaling_grid
from safecircuits.layers.localization import localize
from safecircuits.model.attach import hooks_in_force
from safecircuits.model.forward import Decoder, device_of
from safecircuits.model.load import load_model
from safecircuits.model.memory import estimate_memory, fitting_tokens
from safecircuits.prompts.batching import MAX_TOKENS, batches, common_prefix, each_batch, pad_left, without_prefix
from safecircuits.prompts.prompt_set import Encoded, encode
from safecircuits.weights.probing import head_outputs

PROMPTS = tuple(
    " ".join(words)
    for words in (
        ["how", "do", "i", "make", "the", "cake"],
        ["find", "a", "lamp"],
        ["how", "do", "i", "fix", "the", "road", "and", "the", "house", "with", "some", "water"],
        ["a", "dog"],
        ["bake", "the", "tea"],
    )
)
# A template of some length; what stands last is the prompt's own, so that a random model answers each in its own way.
TEMPLATE = "take some water and salt and tea then you make it with the wood in the house {instruction}"
BEGINNING = 17
ANSWERS = ("sure take some water", "here it is .", "you take the wood and then the salt", "sorry no", "the tea")
DATA = sc.PromptSet("d", PROMPTS, ANSWERS)
OPTIONS: dict[str, Any] = {"template": TEMPLATE}

both = pytest.mark.parametrize("backend", ["bridge", "hooked"])
pytestmark = pytest.mark.usefixtures("narrow_last_layer")


@contextmanager
def watched(model: Any) -> Iterator[None]:
    """Somebody else's hook, which does nothing: every prompt runs in full, on the model itself."""
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda activation, hook: activation)]):
        yield


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and positions of every pass, whichever model runs it."""
    shapes: list[tuple[int, int]] = []
    for name in ("step", "steps", "feed"):
        plain = getattr(Decoder, name)

        def counted(self: Any, input_ids: Any, *args: Any, plain: Any = plain, **options: Any) -> Any:
            shapes.append(tuple(input_ids.shape))
            return plain(self, input_ids, *args, **options)

        monkeypatch.setattr(Decoder, name, counted)
    return shapes


def positions_by_part(model: Any) -> dict[str, list[int]]:
    """How many positions each part that may be narrowed runs at, by its name and in order; filled while passes run."""
    plain = plain_model(model)
    seen: dict[str, list[int]] = {}
    for layer in range(3):
        parts = {"mlp": model.blocks[layer].mlp} if plain is None else {}
        if plain is not None:
            block = plain.block(layer)
            parts = {"mlp": block.mlp, "attn.q": block.self_attn.q_proj, "attn.o": block.self_attn.o_proj}
        for name, part in parts.items():

            def counted(x: Any, run: Any = part.forward, name: str = f"blocks.{layer}.{name}") -> Any:
                seen.setdefault(name, []).append(x.shape[1])
                return run(x)

            part.forward = counted
    return seen


def family(name: str, n_vocab: int) -> Any:
    """Tiny models whose positions are learned, rotary over part of a head, or behind a sliding window."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    common: dict[str, Any] = {
        "vocab_size": n_vocab, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    model: Any = {
        "llama": lambda: build_tiny_llama(),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **common)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=n_vocab, n_embd=32, n_layer=3, n_head=4, n_positions=64, n_ctx=64)
        ),
        "pythia": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**common)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=8, **common)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=6, **common)),
    }[name]()
    return model if name == "llama" else randomised(model).eval()


families = pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "pythia", "mistral"])


class TestSharedPrefix:
    @both
    @families
    def test_equal_to_the_plain_way(self, name: str, backend: str, tiny_tokenizer: Any) -> None:
        model = load_model(family(name, len(tiny_tokenizer)), backend=backend, tokenizer=tiny_tokenizer)
        shared = (
            sc.collect_residuals(model, PROMPTS, **OPTIONS).values,
            sc.generate(model, PROMPTS, **OPTIONS, max_new_tokens=5).texts,
            *(sc.score_units(model, DATA, **OPTIONS, tokens=tokens) for tokens in ("response", "prompt", "all")),
        )
        with watched(model):
            plain = (
                sc.collect_residuals(model, PROMPTS, **OPTIONS).values,
                sc.generate(model, PROMPTS, **OPTIONS, max_new_tokens=5).texts,
                *(sc.score_units(model, DATA, **OPTIONS, tokens=tokens) for tokens in ("response", "prompt", "all")),
            )
        torch.testing.assert_close(shared[0], plain[0], atol=2e-4, rtol=1e-4)
        assert shared[1] == plain[1]
        for a, b in zip(shared[2:], plain[2:], strict=True):
            assert a.n_tokens == b.n_tokens
            for site in ("mlp", "attn"):
                torch.testing.assert_close(a.scores[site], b.scores[site], rtol=1e-4, atol=1e-6)

    @both
    def test_the_beginning_is_computed_once(self, backend: str, make_tiny_model: Any, fed: Any) -> None:
        model = make_tiny_model(backend)
        lengths = [len(e) for e in encode(model.tokenizer, PROMPTS, template=TEMPLATE)]
        sc.collect_residuals(model, PROMPTS, **OPTIONS)
        assert fed == [(1, BEGINNING), (5, max(lengths) - BEGINNING)]
        fed.clear()
        with watched(model):
            sc.collect_residuals(model, PROMPTS, **OPTIONS)
        assert fed == [(5, max(lengths))]

    def test_our_own_hooks_share_and_other_peoples_do_not(self, tiny_bridge: Any, fed: Any) -> None:
        units = sc.FreezeMask.of_units({"mlp": {1: (3,)}}, tiny_bridge)
        with sc.scaled(tiny_bridge, (0, 1), 1.2), sc.ablated(tiny_bridge, units):
            shared = sc.collect_residuals(tiny_bridge, PROMPTS, **OPTIONS).values
            assert fed[0] == (1, BEGINNING)
            fed.clear()
            with sc.attached(tiny_bridge, {"blocks.1.hook_mlp_out": lambda x: x}):
                plain = sc.collect_residuals(tiny_bridge, PROMPTS, **OPTIONS).values
            assert len(fed) == 1
        torch.testing.assert_close(shared, plain, atol=2e-4, rtol=1e-4)
        handle = tiny_bridge.original_model.register_forward_pre_hook(lambda *_: None)
        assert hooks_in_force(tiny_bridge) == (True, False)
        handle.remove()
        assert hooks_in_force(tiny_bridge) == (False, True)

    def test_what_other_libraries_leave_behind_is_no_hook(self, tiny_bridge: Any, fed: Any) -> None:
        batch = pad_left(encode(tiny_bridge.tokenizer, PROMPTS))
        tiny_bridge.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
        assert hooks_in_force(tiny_bridge) == (False, True)
        sc.collect_residuals(tiny_bridge, PROMPTS, **OPTIONS)
        assert fed[0] == (1, BEGINNING)

    def test_a_short_sliding_window_switches_it_off(self, tiny_tokenizer: Any, fed: Any) -> None:
        model = load_model(family("mistral", len(tiny_tokenizer)), tokenizer=tiny_tokenizer)
        sc.collect_residuals(model, PROMPTS, **OPTIONS)
        assert len(fed) == 1

    @given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=6), min_size=1, max_size=90))
    def test_the_common_beginning_leaves_every_prompt_a_token(self, texts: list[list[str]]) -> None:
        examples = [Encoded(tuple(map(ord, ("x",) * 3 + tuple(text))), 3 + len(text)) for text in texts]
        n = common_prefix(examples)
        if n:
            assert n >= 3
            assert len({e.ids[:n] for e in examples}) == 1
            assert (len(examples) - 1) * n >= 64
        rest = without_prefix(examples, n)
        assert min(map(len, rest)) >= 1
        assert [examples[0].ids[:n] + e.ids for e in rest] == [e.ids for e in examples]


class TestOnlyWhatIsNeeded:
    @both
    def test_no_late_layers_and_no_logits(self, backend: str, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend)
        ran: list[str] = []
        plain = plain_model(model)
        late = model.blocks[2] if plain is None else plain.block(2)
        head = model.unembed if plain is None else plain.model.lm_head
        full = sc.collect_residuals(model, PROMPTS).values
        # Plain PyTorch pre-hooks marked as ours: a foreign hook would switch to the full pass.
        for module, name in ((late, "layer 2"), (head, "head")):

            def note(*_: Any, name: str = name) -> None:
                ran.append(name)

            note.per_token = True
            module.register_forward_pre_hook(note)
        if plain is not None:
            torch.testing.assert_close(sc.collect_residuals(model, PROMPTS, layers=[0, 1]).values, full[:2])
            assert ran == []
            sc.collect_residuals(model, PROMPTS, layers=[2])
            assert ran == ["layer 2"]
            sc.score_units(model, DATA)
            assert set(ran) == {"layer 2"}

    def test_a_hooked_transformer_stops_too(self, tiny_hooked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[int] = []
        for layer, block in enumerate(tiny_hooked.blocks):
            plain = block.forward
            monkeypatch.setattr(block, "forward", lambda *a, _p=plain, _l=layer, **o: (ran.append(_l), _p(*a, **o))[1])
        monkeypatch.setattr(tiny_hooked.unembed, "forward", lambda *_: pytest.fail("logits were computed"))
        sc.collect_residuals(tiny_hooked, PROMPTS, layers=[1])
        assert ran == [0, 1]
        sc.score_units(tiny_hooked, DATA)

    @both
    def test_the_last_layer_runs_where_it_is_looked_at(self, backend: str, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend)
        roles_of(model)  # takes passes of its own
        seen = positions_by_part(model)
        width = max(len(e) for e in encode(model.tokenizer, PROMPTS))
        sc.collect_residuals(model, PROMPTS)
        assert {name: widths for name, widths in seen.items() if "blocks.2" not in name} == {
            name: [width] for name in seen if "blocks.2" not in name
        }
        assert all(seen[name] == [1] for name in seen if "blocks.2" in name)
        seen.clear()
        sc.collect_residuals(model, PROMPTS, layers=[1])
        assert seen["blocks.0.mlp"] == [width]
        assert seen["blocks.1.mlp"] == [1]
        seen.clear()
        sc.generate(model, PROMPTS[:1], max_new_tokens=2)
        assert seen["blocks.2.mlp"] == [1, 1]
        assert seen["blocks.1.mlp"] == [len(encode(model.tokenizer, PROMPTS[:1])[0]), 1]
        seen.clear()
        draft = [model.tokenizer.convert_tokens_to_ids(word) for word in ("the", "tea", "and", "some")]
        generate_scaled(model, PROMPTS[:1], [{0: 1.1}], max_new_tokens=4, drafts=[draft])
        assert seen["blocks.2.mlp"][0] == 4, "after the prompt and after each of three tokens of the draft"
        seen.clear()
        sc.score_units(model, DATA, tokens="prompt")
        assert set(seen["blocks.2.mlp"]) == set(seen["blocks.0.mlp"])
        seen.clear()
        with sc.attached(model, {"blocks.2.hook_mlp_out": lambda x: None}):
            sc.collect_residuals(model, PROMPTS)
        assert not seen.get("blocks.2.mlp") or seen["blocks.2.mlp"] == [width]

    @both
    def test_answers_with_a_narrow_last_layer_are_the_models_own(self, backend: str, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend, 3)
        heads = head_outputs(model, sc.PromptSet("p", PROMPTS))
        texts = sc.generate(model, PROMPTS, max_new_tokens=6).texts
        with watched(model):
            plain_heads = head_outputs(model, sc.PromptSet("p", PROMPTS))
            assert sc.generate(model, PROMPTS, max_new_tokens=6).texts == texts
        torch.testing.assert_close(heads, plain_heads, atol=2e-4, rtol=1e-4)

    def test_a_hook_further_up_still_fires(self, tiny_bridge: Any) -> None:
        fired = []
        with sc.attached(tiny_bridge, {"blocks.2.hook_resid_post": lambda x: fired.append(x.shape)}):
            sc.collect_residuals(tiny_bridge, PROMPTS, layers=[0])
        with sc.scaled(tiny_bridge, (2, 2), 1.2):
            sc.collect_residuals(tiny_bridge, PROMPTS, layers=[0])
        assert fired


_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "n_routed_experts": 4, "n_shared_experts": 1,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
# What is unlike the families above: experts (that say beside what they give which were taken, or put all tokens in one
# row), a residual stream that goes through the MLP, attention beside the MLP, windows under another name, an MLP
# without a module, latent queries, states of a recurrence.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("MixtralConfig", _EXPERTS | _GROUPED | {"output_router_logits": True}),
    "Qwen2-MoE": ("Qwen2MoeConfig", _EXPERTS | {"num_key_value_heads": 2, "decoder_sparse_step": 1}),
    "Qwen3-MoE": ("Qwen3MoeConfig", _EXPERTS | _GROUPED | {"decoder_sparse_step": 1}),
    "gpt-oss": ("GptOssConfig", _EXPERTS | _GROUPED | {"sliding_window": 6}),
    "OLMoE": ("OlmoeConfig", _EXPERTS),
    "Llama 4": ("Llama4TextConfig", _EXPERTS | _GROUPED | {"intermediate_size_mlp": 48, "attention_chunk_size": 64}),
    "StableLM": ("StableLmConfig", {"num_key_value_heads": 2, "qk_layernorm": True, "use_parallel_residual": True}),
    "StarCoder2": ("Starcoder2Config", {"num_key_value_heads": 2, "sliding_window": 6}),
    "OPT": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "GPT-Neo": (
        "GPTNeoConfig",
        {"num_layers": 3, "num_heads": 4, "attention_types": [[["local"], 3]], "window_size": 6},
    ),
    "Jamba": (
        "JambaConfig",
        _EXPERTS | {"num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 0, "mamba_d_state": 4,
        "use_mamba_kernels": False},
    ),
}  # fmt: skip


def another(name: str, n_vocab: int) -> Any:
    import transformers

    kind, changes = OTHERS[name]
    sizes = {
        "vocab_size": n_vocab, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": 3,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**sizes | changes)
    return randomised(transformers.AutoModelForCausalLM.from_config(config)).eval()


def measured(model: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor, Any, Any]:
    """Residuals after the last layer and after an earlier one, completions, and those of scaled models with drafts."""
    last = sc.collect_residuals(model, PROMPTS, **options).values[-1]
    earlier = sc.collect_residuals(model, PROMPTS, **options, layers=[1]).values[0]
    drafts: list[list[int]] = []
    answers = sc.generate(model, PROMPTS, **options, max_new_tokens=4, token_ids=drafts)
    drafts = [[*draft[:2], 7] for draft in drafts]
    try:
        scaled = generate_scaled(
            model,
            PROMPTS,
            [{0: 1.2}, {1: 0.8, 2: 1.3}],
            max_new_tokens=4,
            drafts=drafts,
            **options,
        )
    except ValueError as error:  # a bridge has no hook points inside experts and recurrent layers
        return last, earlier, answers, str(error)
    return last, earlier, answers, scaled


class TestOtherArchitectures:
    @pytest.mark.parametrize("template", [TEMPLATE, "none"])
    @pytest.mark.parametrize("name", list(OTHERS))
    def test_equal_to_the_plain_way(self, name: str, template: str, tiny_tokenizer: Any) -> None:
        model = load_model(another(name, len(tiny_tokenizer)), tokenizer=tiny_tokenizer)
        got = measured(model, template=template)
        with watched(model):
            want = measured(model, template=template)
        torch.testing.assert_close(got[:2], want[:2], atol=2e-4, rtol=1e-4)
        assert got[2:] == want[2:]

    @pytest.mark.parametrize(
        "changes",
        [
            {"attn_only": True},
            {"use_hook_mlp_in": True, "use_attn_in": True},
            {"parallel_attn_mlp": True},
            {"gated_mlp": True, "normalization_type": "RMS", "final_rms": True},
            {"gated_mlp": True, "num_experts": 4, "experts_per_token": 2, "normalization_type": "RMS"},
            {"act_fn": "solu_ln"},
            {"normalization_type": None},
            {"normalization_type": "RMS", "use_normalization_before_and_after": True},
            {"positional_embedding_type": "shortformer"},
            {"positional_embedding_type": "alibi"},
            {"use_local_attn": True, "attn_types": ["local", "global", "local"], "window_size": 6},
        ],
    )
    def test_kinds_of_hooked_transformers(self, changes: dict[str, Any], tiny_tokenizer: Any) -> None:
        if "hooked" not in zoo.backends():
            pytest.skip("transformer-lens 4 has no HookedTransformer")
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        sizes: dict[str, Any] = {
            "n_layers": 3, "d_model": 32, "n_ctx": 64, "d_head": 8, "n_heads": 4, "d_mlp": 48,
            "d_vocab": len(tiny_tokenizer), "act_fn": "silu", "normalization_type": "LN", "seed": 0,
        }  # fmt: skip
        positions = {"positional_embedding_type": "rotary", "rotary_dim": 8}
        model: Any = HookedTransformer(HookedTransformerConfig(**sizes | positions | changes))
        model.tokenizer = tiny_tokenizer
        randomised(model.eval())
        got = measured(model, **OPTIONS)
        with watched(model):
            want = measured(model, **OPTIONS)
        torch.testing.assert_close(got[:2], want[:2], atol=2e-4, rtol=1e-4)
        assert got[2:] == want[2:]

    def test_a_model_of_attention_alone_has_no_mlp_to_scale(self, tiny_tokenizer: Any) -> None:
        if "hooked" not in zoo.backends():
            pytest.skip("transformer-lens 4 has no HookedTransformer")
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = HookedTransformerConfig(
            n_layers=1, d_model=8, n_ctx=64, d_head=8, d_vocab=len(tiny_tokenizer), attn_only=True
        )
        model: Any = HookedTransformer(config)
        with (
            pytest.raises(ValueError, match="attention alone, so there is no MLP"),
            sc.scaled(model, (0, 0), 1.1, components="mlp"),
        ):
            pass

    def test_a_part_that_the_bridge_has_made_has_no_place(self, tiny_tokenizer: Any) -> None:
        for name in ("gpt2", "OPT"):
            hf = family(name, len(tiny_tokenizer)) if name == "gpt2" else another(name, len(tiny_tokenizer))
            plain = plain_model(load_model(hf, tokenizer=tiny_tokenizer))
            assert plain is None or plain.model not in plain.per_position(-1)


class TestPlainModel:
    def test_it_is_the_bridge_without_its_hook_points(self, tiny_bridge: Any, tiny_tokenizer: Any) -> None:
        plain = plain_model(tiny_bridge)
        assert plain is not None
        assert {p.data_ptr() for p in plain.model.parameters()} <= {p.data_ptr() for p in tiny_bridge.parameters()}
        assert plain_model(tiny_bridge) is plain
        with torch.no_grad():  # weights edited in place are the plain model's too
            tiny_bridge.blocks[0].mlp.W_out.mul_(0.5)
        got = sc.collect_residuals(tiny_bridge, PROMPTS).values
        with watched(tiny_bridge):
            torch.testing.assert_close(got, sc.collect_residuals(tiny_bridge, PROMPTS).values, atol=1e-4, rtol=1e-4)

    def test_replaced_weights_are_noticed(self, tiny_bridge: Any) -> None:
        before = plain_model(tiny_bridge)
        weight = tiny_bridge.blocks[0].mlp.out.original_component.weight
        weight.data = weight.data * 3
        assert plain_model(tiny_bridge) is not before
        got = sc.collect_residuals(tiny_bridge, PROMPTS).values
        with watched(tiny_bridge):
            torch.testing.assert_close(got, sc.collect_residuals(tiny_bridge, PROMPTS).values, atol=1e-4, rtol=1e-4)

    def test_there_is_none_where_it_would_differ(self, tiny_bridge: Any, tiny_hooked: Any, tiny_tokenizer: Any) -> None:
        assert plain_model(tiny_hooked) is None
        assert plain_model(load_model(family("pythia", len(tiny_tokenizer)), tokenizer=tiny_tokenizer)) is None
        assert plain_model(tiny_bridge.train()) is not None  # it runs without dropout, as every analysis does
        tiny_bridge.eval()
        # What accelerate does to the modules of a model that is spread over devices, and what adapters do.
        module = tiny_bridge.blocks[1].mlp.out.original_component
        module.forward = module.forward
        assert plain_model(tiny_bridge) is None

    def test_a_hook_point_without_a_place_runs_on_the_bridge(self, tiny_bridge: Any) -> None:
        plain = plain_model(tiny_bridge)
        assert plain is not None
        assert plain.has({"blocks.0.attn.hook_z": lambda x: None, "blocks.2.attn.q.hook_in": lambda x: None})
        assert not plain.has({"blocks.0.attn.hook_pattern": lambda x: None})


class TestManyScaledModels:
    PROFILES = ({0: 1.3}, {0: 1.3, 1: 0.7}, {}, {2: 1.9}, {1: 0.5, 2: 1.1})

    @both
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("components", ["all", "mlp"])
    def test_completions_equal_one_at_a_time(
        self, backend: str, dtype: Any, components: str, make_tiny_model: Any
    ) -> None:
        model = make_tiny_model(backend, 1, dtype)
        together = generate_scaled(model, PROMPTS, self.PROFILES, components=components, **OPTIONS, max_new_tokens=6)
        for got, profile in zip(together, self.PROFILES, strict=True):
            with sc.scaled(model, profile or {0: 1.0}, components=components):
                alone = sc.generate(model, PROMPTS, **OPTIONS, max_new_tokens=6)
            assert got.texts == alone.texts
            if backend == "bridge" and dtype == torch.float64:
                continue  # a bridge in float64 has no finite logits for a padded batch
            with sc.scaled(model, profile or {0: 1.0}, components=components), watched(model):
                plain = sc.generate(model, PROMPTS, **OPTIONS, max_new_tokens=6)
            assert got.texts == plain.texts
        assert len({got.texts for got in together}) == len(self.PROFILES), "the profiles must differ to notice"

    @pytest.mark.parametrize("name", ["qwen2", "gpt2", "pythia", "mistral", "qwen3"])
    def test_on_every_kind_of_positions(self, name: str, tiny_tokenizer: Any) -> None:
        model = load_model(family(name, len(tiny_tokenizer)), tokenizer=tiny_tokenizer)
        drafts: list[list[int]] = []
        sc.generate(model, PROMPTS, **OPTIONS, max_new_tokens=4, token_ids=drafts)
        together = generate_scaled(model, PROMPTS, self.PROFILES, **OPTIONS, max_new_tokens=4, drafts=drafts)
        with watched(model):
            assert together == generate_scaled(model, PROMPTS, self.PROFILES, **OPTIONS, max_new_tokens=4)

    def test_half_precision_rounds_as_a_number_does(self) -> None:
        x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
        model = load_model(build_tiny_llama(), tokenizer=__import__("conftest").build_tiny_tokenizer())
        scaling = RowScaling(model, [{0: 1.1}, {0: 0.95}])
        scaling.select(torch.tensor([1, 0]))
        got = scaling.hooks["blocks.0.mlp.out.hook_in"](x)
        assert got is not None
        assert torch.equal(got, torch.stack([x[0] * 0.95, x[1] * 1.1]))

    def test_one_prefill_and_few_steps(self, tiny_bridge: Any, fed: Any) -> None:
        lengths = [len(e) for e in encode(tiny_bridge.tokenizer, PROMPTS, template=TEMPLATE)]
        generate_scaled(tiny_bridge, PROMPTS, self.PROFILES, **OPTIONS, max_new_tokens=4)
        # Two of the five part in the first layer, for which there is a row each.
        assert fed[:2] == [(2, BEGINNING), (10, max(lengths) - BEGINNING)]
        assert len(fed) <= 2 + 3
        fed.clear()
        generate_scaled(tiny_bridge, PROMPTS, self.PROFILES, **OPTIONS, max_new_tokens=4, max_tokens=1)
        own = [n - BEGINNING for n in lengths]
        assert {(2, width) for width in own} <= set(fed), "one prompt at a time, but all profiles of it"

    @both
    def test_alike_layers_are_computed_once(self, backend: str, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend)
        plain = plain_model(model)
        # What a model is tried for at its first use is no part of the count.
        generate_scaled(model, PROMPTS, self.PROFILES, template="none", max_new_tokens=1)
        seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for layer, rows in seen.items():

            def note(_: Any, args: Any, output: Any, rows: list[int] = rows) -> None:
                rows.append(len(output[0] if isinstance(output, tuple) else output))

            note.__module__ = "transformer_lens.test"  # or it would be somebody else's
            block = model.blocks[layer] if plain is None else plain.block(layer)
            block.register_forward_hook(note)
        generate_scaled(model, PROMPTS, self.PROFILES, template="none", max_new_tokens=1)
        assert seen == {0: [10], 1: [20], 2: [25]}

    @both
    def test_drafts_change_the_time_alone(self, backend: str, make_tiny_model: Any, fed: Any) -> None:
        model = make_tiny_model(backend, 1)
        options: dict[str, Any] = {**OPTIONS, "max_new_tokens": 6}
        unscaled: list[list[int]] = []
        sc.generate(model, PROMPTS, **options, token_ids=unscaled)
        mild = ({}, {1: 1.01}, {2: 1.6})
        with watched(model):
            want = generate_scaled(model, PROMPTS, mild, **options)
        assert want[2].texts != want[0].texts
        later = []
        for drafts in (None, unscaled, [[]] * 5, [[7] * 9] * 5, [[*ids[:3], 9, 9] for ids in unscaled]):
            fed.clear()
            assert generate_scaled(model, PROMPTS, mild, **options, drafts=drafts) == want
            assert fed[0] == (1, BEGINNING)
            later.append(sum(rows for rows, _ in fed[2:]))
        assert later[1] < 0.6 * later[0], "two of three models say what the draft says, or nearly"
        fed.clear()
        assert generate_scaled(model, PROMPTS, mild[:1], **options, drafts=unscaled) == want[:1]
        assert len(fed) == 2, "the beginning, and one pass in which every draft is right"
        with pytest.raises(ValueError, match="one draft for each of 5 prompts, not 1"):
            generate_scaled(model, PROMPTS, mild, **options, drafts=[[1]])

    @given(
        st.lists(st.dictionaries(st.integers(0, 3), st.sampled_from([0.9, 1.0, 1.2])), min_size=1, max_size=6),
        st.integers(1, 4),
    )
    def test_rows_stand_for_models_that_are_alike_so_far(self, profiles: list[dict[int, float]], n: int) -> None:
        branches = Branches(profiles, 4)
        models, prompts = zip(*itertools.product(range(len(profiles)), range(n)), strict=True)
        rows = branches.rows(models, prompts, n)
        stands_for = branches.models(n)
        for layer in range(4):
            distinct = {tuple(p.get(i, 1.0) for i in range(layer + 1)) for p in profiles}
            assert len(stands_for[layer]) == len(distinct) * n
            for model, prompt, row in zip(models, prompts, rows[layer].tolist(), strict=True):
                assert row % n == prompt
                other = profiles[int(stands_for[layer][row])]
                assert all(other.get(i, 1.0) == profiles[model].get(i, 1.0) for i in range(layer + 1))

    @both
    def test_a_sweep_equals_one_configuration_at_a_time(self, backend: str, make_tiny_model: Any, fed: Any) -> None:
        model = make_tiny_model(backend)
        options: dict[str, Any] = {"alpha": 1.3, "detector": lambda t: len(t) % 2 == 0, "max_new_tokens": 8, **OPTIONS}
        found = localize(model, PROMPTS, (0, 1), reach=1, **options)
        passes = len(fed)
        for point in (*found.upper.points, *found.lower.points):
            assert point.layers is not None
            with sc.scaled(model, point.layers, 1.3):
                alone = sc.generate(model, PROMPTS, max_new_tokens=8, **OPTIONS)
            assert point.completions.texts == alone.texts
        # Baseline, upper and lower sweep: one batch each, so at most a prefix and eight steps.
        assert passes <= 3 * 9
        assert scaling_grid(model, PROMPTS, **options).counts[0, 1] == found.upper.points[1].count

    @given(st.lists(st.integers(0, 15), min_size=1, max_size=60))
    def test_long_guesses_are_cut_where_padding_others_costs_more(self, lengths: list[int]) -> None:
        most = worth_feeding(lengths)
        assert 0 <= most <= max(lengths)
        later = [length - most for length in lengths if length > most]
        fed = len(lengths) * most + len(later) * max(later, default=0) + (64 if later else 0)
        assert fed <= len(lengths) * max(lengths)
        assert worth_feeding([most] * len(lengths)) == most, "guesses of one length are fed whole"

    def test_one_long_guess_among_many_short_ones_waits(self) -> None:
        assert worth_feeding([2] * 80 + [10]) == 2
        assert worth_feeding([2] * 3 + [10]) == 10, "a call of its own would cost more than the padding"


class TestLeavingTheBatch:
    def test_rows_leave_at_the_end_of_their_text(self, tiny_bridge: Any, fed: Any) -> None:
        texts = sc.generate(tiny_bridge, PROMPTS, max_new_tokens=6).texts
        # Make what one of the prompts says first an end of text.
        end = tiny_bridge.tokenizer.convert_tokens_to_ids(texts[1].split()[1])
        tiny_bridge.original_model.generation_config.eos_token_id = [end, 3]
        fed.clear()
        short = sc.generate(tiny_bridge, PROMPTS, max_new_tokens=6).texts
        rows = [n for n, width in fed if width == 1]
        word = texts[1].split()[1]
        cut = [list(itertools.takewhile(lambda w: w != word, text.split())) for text in texts]
        assert [text.split() for text in short] == cut
        lasting = [min(len(c) + 1, 6) for c in cut]  # steps a row takes part in, the prefill among them
        assert rows == [sum(n > step for n in lasting) for step in range(1, max(lasting))]
        fed.clear()
        with watched(tiny_bridge):
            assert sc.generate(tiny_bridge, PROMPTS, max_new_tokens=6).texts == short
        assert {n for n, width in fed if width == 1} == {len(PROMPTS)}

    @pytest.mark.parametrize("where", ["start", "anywhere"])
    @pytest.mark.parametrize("stage", ["bridge", "hooked"])
    def test_early_stop_keeps_every_verdict(self, where: Any, stage: str, make_tiny_model: Any, fed: Any) -> None:
        model = make_tiny_model(stage, 1)
        first = [t.split()[:2] for t in sc.generate(model, PROMPTS, max_new_tokens=2, **OPTIONS).texts]
        detector = sc.PhraseDetector("mine", (" ".join(first[0]), "sorry lamp"), where)
        options: dict[str, Any] = {"alpha": 1.3, "detector": detector, "max_new_tokens": 8, **OPTIONS}
        whole = scaling_grid(model, PROMPTS, **options)
        long = sum(n for n, width in fed if width == 1)
        fed.clear()
        early = scaling_grid(model, PROMPTS, **options, early_stop=True)
        assert sum(n for n, width in fed if width == 1) < long
        for a, b in zip((whole.baseline, *whole.points), (early.baseline, *early.points), strict=True):
            assert torch.equal(a.refused, b.refused)
            assert a.degenerate == b.degenerate
            assert all(x.startswith(y) for x, y in zip(a.completions.texts, b.completions.texts, strict=True))
        assert 0 < whole.baseline.count < len(PROMPTS)
        assert whole.baseline.completions.cut is None
        with pytest.raises(ValueError, match="would judge parts of texts"):
            sc.refused(early.baseline.completions, "opening")
        assert torch.equal(sc.refused(early.baseline.completions, detector), early.baseline.refused)

    def test_a_detector_that_cannot_decide_early_reads_whole_texts(self, tiny_bridge: Any) -> None:
        options: dict[str, Any] = {"alpha": 1.2, "detector": lambda t: "a" in t, "max_new_tokens": 8, **OPTIONS}
        grid = scaling_grid(tiny_bridge, PROMPTS, **options, early_stop=True)
        assert grid.baseline.completions.cut is None
        assert grid.provenance["early_stop"] is False

    def test_a_cut_sweep_is_resumed_by_its_own_detector_only(self, tiny_bridge: Any, tmp_path: Any) -> None:
        options: dict[str, Any] = {"alpha": 1.2, "resume": tmp_path / "s.jsonl", "max_length": 1, **OPTIONS}
        first = scaling_grid(tiny_bridge, PROMPTS, **options, early_stop=True)
        assert scaling_grid(tiny_bridge, PROMPTS, **options, early_stop=True).equals(first)
        for other in ({"early_stop": True, "detector": "xstest"}, {"early_stop": False}):
            with pytest.raises(ValueError, match="made with another early_stop"):
                scaling_grid(tiny_bridge, PROMPTS, **options, **other)

    def test_cut_completions_say_so_on_disk(self, tiny_bridge: Any, tmp_path: Any) -> None:
        early = sc.generate(tiny_bridge, PROMPTS, max_new_tokens=8, until=EarlyVerdict("opening"))
        assert early.cut == "detector 'opening' was certain"
        assert sc.Completions.load(early.save(tmp_path / "c.jsonl")).cut == early.cut

    @settings(max_examples=300)
    @given(
        st.sampled_from(sorted(DETECTORS)),
        st.text(alphabet=st.sampled_from("iI'’ cantosryumlw,*\n\ufffdΣ\"-"), max_size=12)
        | st.sampled_from(["I cannot", "i'm sorry, but I can't", "As an AI", "sorry", "No,", "It is not", "I"]),
        st.text(max_size=12) | st.sampled_from(["’t", "'m sorry", " , no", "not", "Σa", "."]),
    )
    def test_a_certain_verdict_never_changes(self, name: str, text: str, more: str) -> None:
        detector = DETECTORS[name]
        verdict = decided(detector, text)
        if verdict is not None:
            assert detector(text + more) == verdict

    @given(st.lists(st.sampled_from(["a", "b", "the", "x"]), max_size=10), st.integers(0, 9))
    def test_degenerate_stays_open_as_long_as_it_is(self, words: list[str], cut: int) -> None:
        left = max(len(words) - cut, 0)
        verdict = EarlyVerdict(sc.PhraseDetector("z", ("zzz",), "start"))
        if verdict(" ".join(words[:cut]), left) and words[:cut]:
            assert not degenerate(" ".join(words))


class TestMemory:
    @both
    def test_a_batch_that_does_not_fit_is_halved(
        self, backend: str, make_tiny_model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make_tiny_model(backend)
        want = (
            sc.collect_residuals(model, PROMPTS, **OPTIONS).values,
            sc.generate(model, PROMPTS, **OPTIONS).texts,
            sc.score_units(model, DATA, **OPTIONS, tokens="all"),
            generate_scaled(model, PROMPTS, [{1: 1.3}, {2: 0.8}], **OPTIONS),
        )
        tried: list[int] = []
        for name in ("step", "steps", "feed"):
            plain = getattr(Decoder, name)

            def small(self: Any, ids: Any, *args: Any, plain: Any = plain, **options: Any) -> Any:
                tried.append(len(ids))
                out = plain(self, ids, *args, **options)
                if len(ids) > 2:  # after every hook has fired: nothing of it may count
                    raise torch.OutOfMemoryError("simulated")
                return out

            monkeypatch.setattr(Decoder, name, small)
        got = sc.collect_residuals(model, PROMPTS, **OPTIONS).values
        assert tried == [1, 5, 2, 2, 1]
        torch.testing.assert_close(got, want[0], atol=1e-4, rtol=1e-4)
        assert sc.generate(model, PROMPTS, **OPTIONS).texts == want[1]
        tried.clear()
        assert generate_scaled(model, PROMPTS, [{1: 1.3}, {2: 0.8}], **OPTIONS) == want[3]
        assert tried[:3] == [1, 5, 2]
        scores = sc.score_units(model, DATA, **OPTIONS, tokens="all")
        assert scores.n_tokens == want[2].n_tokens
        torch.testing.assert_close(scores.scores["mlp"], want[2].scores["mlp"], rtol=1e-4, atol=1e-6)

    @both
    def test_batches_are_made_for_the_memory_that_is_free(
        self, backend: str, make_tiny_model: Any, fed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make_tiny_model(backend)
        width = max(len(e) for e in encode(model.tokenizer, PROMPTS))
        answered = sc.generate(model, PROMPTS), sc.collect_residuals(model, PROMPTS).values
        assert fitting_tokens(model, width) == MAX_TOKENS
        counted = estimate_memory(model, tokens=(1, width), task="scores").activations
        # Room for two rows and a half, of which a quarter is left alone; an MLP may hold more than the count has.
        free = int(2.5 * counted / 0.75)
        for n_bytes, tokens in ((free, 2 * width), (1, width), (None, MAX_TOKENS)):
            monkeypatch.setattr("safecircuits.model.memory.free_memory", lambda device, n=n_bytes: n)
            assert width <= fitting_tokens(model, width) <= tokens
            assert fitting_tokens(model, width, cached=True) <= fitting_tokens(model, width)
            fed.clear()
            torch.testing.assert_close(sc.collect_residuals(model, PROMPTS).values, answered[1], atol=1e-4, rtol=1e-4)
            assert max(rows * tall for rows, tall in fed) <= tokens
            assert (len(fed) > 1) == (n_bytes is not None)
            assert sc.generate(model, PROMPTS) == answered[0]

    def test_a_prompt_that_never_fits_is_an_error(self) -> None:
        def never(batch: Any) -> None:
            raise torch.OutOfMemoryError("simulated")

        with pytest.raises(torch.OutOfMemoryError):
            list(each_batch([Encoded((1, 2), 2)] * 3, never))

    @given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
    def test_batches_hold_every_prompt_once_within_the_budget(self, lengths: list[int], budget: int) -> None:
        examples = [Encoded((1,) * n, n) for n in lengths]
        made = list(batches(examples, budget))
        assert sorted(row for batch in made for row in batch.rows) == list(range(len(lengths)))
        assert all(len(b) == 1 or b.input_ids.numel() <= budget for b in made)
        widths = [b.input_ids.shape[1] for b in made]
        assert widths == sorted(widths, reverse=True)
        assert MAX_TOKENS >= 1


def test_a_decoder_goes_on_from_any_rows(tiny_bridge: Any, tiny_hooked: Any) -> None:
    batch = pad_left(encode(tiny_bridge.tokenizer, PROMPTS))
    more = torch.tensor([[8], [9], [10]])
    for model in (tiny_bridge, tiny_hooked):
        with torch.no_grad():
            whole = Decoder(model)
            whole.step(batch.input_ids, batch.attention_mask)
            picked = whole.rows(torch.tensor([4, 0, 4]))
            got = picked.step(more, torch.ones_like(more))
            ids = torch.cat([batch.input_ids[[4, 0, 4]], more], 1)
            mask = torch.cat([batch.attention_mask[[4, 0, 4]], torch.ones_like(more)], 1)
            torch.testing.assert_close(got, Decoder(model).step(ids, mask), atol=1e-3, rtol=1e-4)
            assert whole.step(more[:1].expand(5, 1), torch.ones(5, 1, dtype=torch.long)).shape[0] == 5
            assert device_of(model).type == "cpu"


def test_every_word_of_the_template_is_known(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer(TEMPLATE.split("{")[0])["input_ids"]
    assert len(ids) == BEGINNING
    assert tiny_tokenizer.unk_token_id not in ids


def test_an_mlp_without_a_gate_is_narrowed_too(tiny_tokenizer: Any) -> None:
    """GPT-2's HookedTransformer asks for a view of what enters its MLP, which a part of a tensor need not have."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = load_model(randomised(GPT2LMHeadModel(config)), backend="hooked", tokenizer=tiny_tokenizer)
    found = localize(model, PROMPTS, (0, 1), alpha=1.3, reach=1, max_new_tokens=4, **OPTIONS)
    with watched(model):
        alone = localize(model, PROMPTS, (0, 1), alpha=1.3, reach=1, max_new_tokens=4, **OPTIONS)
    assert [p.completions.texts for p in found.upper.points] == [p.completions.texts for p in alone.upper.points]
