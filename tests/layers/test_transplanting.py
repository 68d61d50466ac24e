"""Transplanted layers against hand-edited state dicts, and against the model they come from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer, randomised
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.divergence import KLReference
from safecircuits.layers.transplanting import TransplantTable, decoder_layers, transplant, transplant_study
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import PromptSet

LAYERS_OF = {"llama": "model.layers", "gpt2": "transformer.h", "pythia": "gpt_neox.layers"}
families = pytest.mark.parametrize("family", list(LAYERS_OF))
IDS = torch.tensor([[2, 9, 14, 11, 30, 8]])


def build(family: str, seed: int) -> Any:
    """A tiny random model with three layers."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    if family == "llama":
        return build_tiny_llama(seed)
    n = len(build_tiny_tokenizer())
    torch.manual_seed(seed)
    if family == "gpt2":
        small = GPT2Config(vocab_size=n, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=3)
        return randomised(GPT2LMHeadModel(small)).eval()
    neox = GPTNeoXConfig(
        vocab_size=n,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        bos_token_id=2,
        eos_token_id=3,
    )
    return randomised(GPTNeoXForCausalLM(neox)).eval()


@torch.no_grad()
def logits(hf_model: Any) -> torch.Tensor:
    out: torch.Tensor = hf_model(IDS).logits
    return out


def changed(a: Any, b: Any) -> set[str]:
    """Names of state dict entries that differ."""
    theirs = b.state_dict()
    return {name for name, value in a.state_dict().items() if not torch.equal(value, theirs[name])}


def storages(hf_model: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in (*hf_model.parameters(), *hf_model.buffers())}


class TestTransplant:
    @families
    def test_exactly_the_named_layers_come_from_the_source(self, family: str) -> None:
        source, target = build(family, 1), build(family, 2)
        kept = [copy.deepcopy(m.state_dict()) for m in (source, target)]
        result = transplant(source, target, (1, 2))
        inside = {
            n for n in target.state_dict() if n.startswith((f"{LAYERS_OF[family]}.1.", f"{LAYERS_OF[family]}.2."))
        }
        assert changed(result, target) == inside
        assert changed(result, source) == set(target.state_dict()) - inside
        for model, state in zip((source, target), kept, strict=True):
            assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
        assert type(result) is type(target)
        assert not storages(result) & (storages(source) | storages(target))

    @families
    def test_all_layers_of_a_model_that_differs_in_nothing_else(self, family: str) -> None:
        target = build(family, 2)
        source = copy.deepcopy(target)
        decoder_layers(source).load_state_dict(decoder_layers(build(family, 1)).state_dict())
        assert (logits(source) - logits(target)).abs().max() > 0.1
        assert torch.equal(logits(transplant(source, target, LayerRange(0, 2))), logits(source))

    @families
    def test_ranges_compose(self, family: str) -> None:
        source, target = build(family, 1), build(family, 2)
        in_two_steps = transplant(source, transplant(source, target, (0, 0)), (1, 2))
        at_once = transplant(source, target, (0, 2))
        assert not changed(in_two_steps, at_once)
        assert torch.equal(logits(in_two_steps), logits(at_once))

    @families
    def test_saved_and_reloaded(self, family: str, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        result = transplant(build(family, 1), build(family, 2), (0, 1))
        result.save_pretrained(tmp_path / "model")
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()), logits(result))

    @pytest.mark.parametrize("norms", [True, False])
    def test_equals_a_state_dict_edited_by_name(self, norms: bool) -> None:
        source, target = build("llama", 1), build("llama", 2)
        matrices = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
        matrices += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        moved = matrices + ["input_layernorm", "post_attention_layernorm"] * norms
        state = copy.deepcopy(target.state_dict())
        for name in moved:
            state[f"model.layers.1.{name}.weight"] = source.state_dict()[f"model.layers.1.{name}.weight"].clone()
        want = copy.deepcopy(target)
        want.load_state_dict(state)
        result = transplant(source, target, (1, 1), norms=norms)
        assert not changed(result, want)
        assert torch.equal(logits(result), logits(want))

    @pytest.mark.parametrize("family", ["gpt2", "pythia"])
    def test_norms_with_biases_can_stay(self, family: str) -> None:
        source, target = build(family, 1), build(family, 2)
        result = transplant(source, target, (0, 2), norms=False)
        stayed = {n for n in target.state_dict() if n.startswith(LAYERS_OF[family])} - changed(result, target)
        assert len(stayed) == 3 * 2 * 2, "two norms a layer, each with a weight and a bias"
        assert all("ln_" in name or "layernorm" in name for name in stayed)

    @pytest.mark.parametrize("kinds", [("bridge", "hooked"), ("hooked", "bridge"), ("hf", "hooked"), ("bridge", "hf")])
    def test_any_kind_of_model(self, kinds: tuple[str, str], make_tiny_model: Any) -> None:
        source, target = (make_tiny_model(kind, seed) for seed, kind in enumerate(kinds))
        want = transplant(build("llama", 0), build("llama", 1), (1, 2))
        result = transplant(source, target, (1, 2))
        torch.testing.assert_close(logits(result), logits(want), atol=0, rtol=0)
        assert not storages(result) & {
            p.untyped_storage().data_ptr() for p in (*source.parameters(), *target.parameters())
        }

    @families
    def test_folders(self, family: str, tmp_path: Path) -> None:
        source, target = build(family, 1), build(family, 2)
        for name, model in (("source", source), ("target", target)):
            model.save_pretrained(tmp_path / name)
            build_tiny_tokenizer().save_pretrained(tmp_path / name)
        result = transplant(tmp_path / "source", str(tmp_path / "target"), (0, 1))
        assert not changed(result, transplant(source, target, (0, 1)))

    def test_keeps_the_targets_dtype(self) -> None:
        source, target = build_tiny_llama(1), build_tiny_llama(2, torch.bfloat16)
        result = transplant(source, target, (0, 2))
        assert {p.dtype for p in result.parameters()} == {torch.bfloat16}
        want = decoder_layers(source).to(torch.bfloat16).state_dict()
        assert all(torch.equal(value, want[name]) for name, value in decoder_layers(result).state_dict().items())

    def test_tied_embeddings_stay_tied(self) -> None:
        source, target = (build_tiny_llama(seed, tie_word_embeddings=True) for seed in (1, 2))
        result = transplant(source, target, (0, 0))
        assert result.lm_head.weight is result.model.embed_tokens.weight

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_hidden_layers": 4}, "number of layers 3 in the source, 4 in the target"),
            ({"intermediate_size": 64}, "intermediate_size 48 in the source, 64 in the target"),
            ({"num_attention_heads": 8}, "num_attention_heads 4 in the source, 8 in the target"),
            ({"hidden_size": 64, "hidden_act": "gelu"}, "hidden_size 32 .* 64 in the target; hidden_act silu .* gelu"),
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters .*10000.* 500000"),
            ({"attention_bias": True}, r"shape of 0.self_attn.q_proj.bias in the layers None .* \(32,\) in the target"),
        ],
    )
    def test_shapes_that_differ(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            transplant(build_tiny_llama(), build_tiny_llama(**changes), (0, 1))

    def test_bad_input(self) -> None:
        llama = build("llama", 0)
        with pytest.raises(
            ValueError, match="architecture GPT2LMHeadModel in the source, LlamaForCausalLM in the target"
        ):
            transplant(build("gpt2", 0), llama, (0, 1))
        with pytest.raises(ValueError, match=r"\[2, 3\] is outside the model, whose layers are 0 to 2"):
            transplant(llama, llama, (2, 3))
        with pytest.raises(ValueError, match="cannot transplant layers of a dict"):
            transplant({}, llama, (0, 1))
        with pytest.raises(ValueError, match="meta device"):
            transplant(copy.deepcopy(llama).to("meta"), llama, (0, 1))


class TestStudy:
    PROMPTS = ("how do i make the cake", "find a lamp", "a dog", "fix the road")

    def sets(self, model: Any) -> dict[str, Any]:
        """Malicious prompts, and a utility set on which ``model`` is always right, since it ends all its answers."""
        answers = sc.generate(model, self.PROMPTS, max_new_tokens=6)
        assert all(answers.ended)
        assert all(answers.texts)
        return {
            "malicious": PromptSet("malicious", self.PROMPTS),
            "utility": PromptSet("utility", self.PROMPTS, answers.texts),
            "max_new_tokens": 5,  # the longest answer, whose end is the token after
            "detector": lambda text: "the" in text.split(),
        }

    @pytest.mark.parametrize("backend", ["bridge", "hooked"])
    def test_rows_are_evaluations_of_the_transplants(self, backend: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
        source, target = build("llama", 1), build("llama", 2)
        for model in (source, target):
            model.generation_config.eos_token_id = tiny_tokenizer.convert_tokens_to_ids([".", "is", "how"])
        sets = self.sets(load_model(source, tokenizer=tiny_tokenizer))
        blocks = {"all": (0, 2), "middle": LayerRange(1, 1)}
        table = transplant_study(source, target, blocks, tokenizer=tiny_tokenizer, backend=backend, **sets)
        assert table.source.rates["utility"] == 1.0
        assert table.target.rates["utility"] < 1.0
        assert [(row.name, row.layers) for row in table.rows] == [
            ("all", LayerRange(0, 2)),
            ("middle", LayerRange(1, 1)),
        ]
        for row in table.rows:
            alone = load_model(transplant(source, target, row.layers), tokenizer=tiny_tokenizer)
            want = sc.evaluate(alone, **sets)
            assert torch.equal(row.behavior.utility, want.utility)
            assert torch.equal(row.behavior.malicious, want.malicious)
            before = KLReference.of(load_model(target, tokenizer=tiny_tokenizer), sets["malicious"])
            moved = before.divergence(alone).values
            torch.testing.assert_close(row.behavior.kl["malicious"].values, moved, atol=1e-4, rtol=0, equal_nan=True)
        assert TransplantTable.load(table.save(tmp_path / "table")).equals(table)
        frame = table.to_frame()
        assert {"model", "first", "last", "malicious_refused", "malicious_incoherent", "utility"} <= set(frame.columns)
        assert list(frame.model) == ["source", "target", "all", "middle"]
        assert list(frame["first"].isna()) == [True, True, False, False]
        assert frame.iloc[3]["last"] == 1
        assert list(frame["harmless_first_token_kl"].isna()) == [False, True, False, False]
        assert not table.target.kl

    def test_tokenizer_of_the_target_serves_all(self, make_tiny_model: Any, tiny_tokenizer: Any) -> None:
        source, target = make_tiny_model("bridge", 1), make_tiny_model("hooked", 2)
        source.tokenizer = None
        table = transplant_study(source, target, {"last": (2, 2)}, malicious=PromptSet("m", self.PROMPTS))
        assert len(table.rows) == 1
        assert source.tokenizer is None, "the inputs stay as they are"

    def test_bad_input_is_refused_before_anything_is_measured(
        self, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        llama, wider = build("llama", 0), build_tiny_llama(intermediate_size=64)
        sets = {"malicious": PromptSet("m", self.PROMPTS)}
        monkeypatch.setattr("safecircuits.layers.transplanting.evaluate", lambda *a, **k: pytest.fail("measured"))
        with pytest.raises(ValueError, match=r"\[2, 3\] is outside the model"):
            transplant_study(llama, llama, {"late": (2, 3)}, tokenizer=tiny_tokenizer, **sets)
        with pytest.raises(ValueError, match="pass tokenizer="):
            transplant_study(llama, llama, {"late": (1, 2)}, **sets)
        with pytest.raises(ValueError, match="intermediate_size"):
            transplant_study(llama, wider, {"late": (1, 2)}, tokenizer=tiny_tokenizer, **sets)


def test_a_detector_that_raises_leaves_the_models_measured_before() -> None:
    judged: list[str] = []

    def detector(text: str) -> bool:
        if len(judged) == 8:
            raise RuntimeError("no more")
        judged.append(text)
        return len(text) % 2 == 0

    prompts = sc.load_prompts("organism:malicious", n=3)
    blocks = {"first": (0, 3)}
    with pytest.raises(sc.base.JudgingError) as caught:
        transplant_study("aligned", "base", blocks, malicious=prompts, detector=detector, max_new_tokens=4)
    kept = caught.value.kept
    assert list(kept["finished"]) == ["target", "source"]
    whole = transplant_study(
        "aligned", "base", blocks, malicious=prompts, detector=lambda text: len(text) % 2 == 0, max_new_tokens=4
    )
    for name, one in (("source", whole.source), ("target", whole.target)):
        assert torch.equal(kept["finished"][name].malicious, one.malicious)
        assert kept["finished"][name].record() == one.record()  # the answers, too, by what they are called
    assert len(kept["malicious"]) == 3
