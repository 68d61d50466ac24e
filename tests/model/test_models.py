"""Loading anything, saving it back: parity with Hugging Face's own forward, and one clear error for bad input."""

from __future__ import annotations

import copy
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch

from conftest import WORDS, build_tiny_llama
from safecircuits.base.notices import Notice
from safecircuits.behavior.generate import generate
from safecircuits.model.forward import Decoder, logits
from safecircuits.model.load import load_model, save_pretrained
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode

PROMPTS = ["how do i make the cake", "find a lamp", "how do i fix the road and the house with some water"]


def solo_logits(hf_model: Any, example: Encoded) -> torch.Tensor:
    """Hugging Face's own answer to one prompt, without padding: logits after its last token."""
    with torch.no_grad():
        return hf_model(torch.tensor([example.ids])).logits[0, -1]


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_padded_batch_equals_hugging_face_alone(backend: str, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
    model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
    examples = encode(tiny_tokenizer, PROMPTS)
    with torch.no_grad():
        together = logits(model, pad_left(examples))[:, -1]
    alone = torch.stack([solo_logits(tiny_llama_hf, example) for example in examples])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_decoding_step_by_step_equals_one_forward(backend: str, make_tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = make_tiny_model(backend)
    batch = pad_left(encode(tiny_tokenizer, PROMPTS))
    with torch.no_grad():
        whole = logits(model, batch)[:, -1]
        decoder = Decoder(model)
        decoder.step(batch.input_ids[:, :-3], batch.attention_mask[:, :-3])
        decoder.step(batch.input_ids[:, -3:-1], batch.attention_mask[:, -3:-1])
        stepped = decoder.step(batch.input_ids[:, -1:], batch.attention_mask[:, -1:])
    torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-5)


def test_a_bridge_leaves_the_hugging_face_object_plain_and_shares_its_parameters(
    tiny_llama_hf: Any, tiny_tokenizer: Any
) -> None:
    names = [name for name, _ in tiny_llama_hf.named_parameters()]
    model = load_model(tiny_llama_hf, tokenizer=tiny_tokenizer)
    assert [name for name, _ in tiny_llama_hf.named_parameters()] == names
    mine = {id(p) for p in tiny_llama_hf.parameters()}
    assert mine <= {id(p) for p in model.parameters()}
    assert all(not p.any() for p in model.parameters() if id(p) not in mine), "the bridge adds a head bias of zeros"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_export_reloads_with_equal_logits(
    backend: str, tied: bool, make_tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = make_tiny_model(backend, tie_word_embeddings=tied)
    with torch.no_grad():  # a change that only the hooked model knows of
        model.blocks[1].mlp.W_out.mul_(1.5)
    batch = pad_left(encode(tiny_tokenizer, PROMPTS))
    folder = save_pretrained(model, tmp_path / "out")
    reloaded = load_model(folder)
    with torch.no_grad():
        torch.testing.assert_close(logits(reloaded, batch)[:, -1], logits(model, batch)[:, -1], atol=1e-4, rtol=1e-5)
    assert reloaded.tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing half-written stays behind"


def test_embeddings_that_a_hooked_model_has_moved_apart_are_exported_apart(
    make_tiny_model: Any, tmp_path: Path
) -> None:
    model = make_tiny_model("hooked", tie_word_embeddings=True)
    with torch.no_grad():
        model.embed.W_E.mul_(1.1)
    with pytest.warns(Notice, match=r"exported with an output embedding of its own \(tie_word_embeddings=False\)"):
        reloaded: Any = load_model(save_pretrained(model, tmp_path / "out"))
    assert not reloaded.original_model.config.tie_word_embeddings
    batch = pad_left(encode(model.tokenizer, PROMPTS))
    with torch.no_grad():
        torch.testing.assert_close(logits(reloaded, batch)[:, -1], logits(model, batch)[:, -1], atol=1e-4, rtol=1e-5)


def test_a_phantom_bias_that_was_trained_cannot_be_exported(make_tiny_model: Any, tmp_path: Path) -> None:
    model = make_tiny_model("hooked")
    assert not model.blocks[0].mlp.b_out.requires_grad, "a Llama has no such bias, so it must not train"
    with torch.no_grad():
        model.blocks[0].mlp.b_out.add_(1)
    with pytest.raises(ValueError, match="b_out is not zero"):
        save_pretrained(model, tmp_path / "out")


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_ready_models_are_returned_themselves(backend: str, make_tiny_model: Any) -> None:
    model = make_tiny_model(backend)
    assert load_model(model) is model


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_transformer_lens_own_text_methods_work(backend: str, make_tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = make_tiny_model(backend)
    want = [[tiny_tokenizer.bos_token_id, *tiny_tokenizer("find a lamp")["input_ids"]]]
    assert model.to_tokens("find a lamp").tolist() == want
    other = copy.deepcopy(tiny_tokenizer)
    assert load_model(model, tokenizer=other).tokenizer is other
    assert model.to_tokens("find a lamp").tolist() == want


def test_a_bridge_that_transformer_lens_booted(tiny_llama_hf: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    tiny_llama_hf.save_pretrained(tmp_path / "m")
    tiny_tokenizer.save_pretrained(tmp_path / "m")
    booted = TransformerBridge.boot_transformers(str(tmp_path / "m"), device="cpu")
    model = load_model(booted)
    assert model is booted
    batch = pad_left(encode(tiny_tokenizer, PROMPTS))
    with torch.no_grad():
        want = logits(load_model(tmp_path / "m"), batch)[:, -1]
        torch.testing.assert_close(logits(model, batch)[:, -1], want, atol=1e-4, rtol=1e-5)
    reloaded = load_model(save_pretrained(model, tmp_path / "out"))
    with torch.no_grad():
        torch.testing.assert_close(logits(reloaded, batch)[:, -1], want, atol=1e-4, rtol=1e-5)


def test_both_backends_have_the_same_shape(tiny_bridge: Any, tiny_hooked: Any) -> None:
    assert ModelShape.of(tiny_bridge) == ModelShape.of(tiny_hooked) == ModelShape("LlamaForCausalLM", 3, 32, 48, 4, 2)


def test_local_folder_by_path_and_string(tiny_llama_hf: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_llama_hf.save_pretrained(tmp_path / "m")
    tiny_tokenizer.save_pretrained(tmp_path / "m")
    for source in (tmp_path / "m", str(tmp_path / "m")):
        assert ModelShape.of(load_model(source)).n_layers == 3


class TestBadInput:
    def test_misspelt_stage(self) -> None:
        with pytest.raises(ValueError, match=r"no model 'alligned'.*aligned, planted-layers"):
            load_model("alligned")

    def test_unknown_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        message = (
            r"cannot load 'nobody/nothing': there is no such folder, the hub cannot be reached .* is not in the cache"
        )
        with pytest.raises(ValueError, match=message):
            load_model("nobody/nothing")

    def test_folder_without_a_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not a folder with a Hugging Face checkpoint"):
            load_model(tmp_path)

    def test_model_object_without_tokenizer(self, tiny_llama_hf: Any) -> None:
        with pytest.raises(ValueError, match="pass tokenizer="):
            load_model(tiny_llama_hf)

    def test_not_a_model(self) -> None:
        with pytest.raises(ValueError, match="cannot load a model from a int"):
            load_model(7)

    def test_unknown_backend(self) -> None:
        with pytest.raises(ValueError, match="'bridge' or 'hooked', not 'nnsight'"):
            load_model("base", backend="nnsight")

    def test_folded_norms_are_refused(self, make_tiny_model: Any) -> None:
        model = make_tiny_model("hooked")
        model.cfg.normalization_type = "RMSPre"
        with pytest.raises(ValueError, match="weights were processed"):
            load_model(model)
        bridge = make_tiny_model("bridge")
        bridge.compatibility_mode = True
        with pytest.raises(ValueError, match="weights were processed"):
            load_model(bridge)

    def test_meta_device(self, tiny_tokenizer: Any) -> None:
        with pytest.raises(ValueError, match="meta device"):
            load_model(build_tiny_llama().to("meta"), tokenizer=tiny_tokenizer)

    def test_tokenizer_without_pad_token_is_handled(self, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        bare = copy.deepcopy(tiny_tokenizer)
        bare.pad_token = None
        model = load_model(tiny_llama_hf, tokenizer=bare)
        from safecircuits.behavior.generate import generate

        assert (
            generate(model, PROMPTS).texts
            == generate(load_model(tiny_llama_hf, tokenizer=tiny_tokenizer), PROMPTS).texts
        )
        assert bare.pad_token is None, "the user's tokenizer stays as it was"


def test_the_words_of_the_prompts_are_known() -> None:
    assert {word for prompt in PROMPTS for word in prompt.split()} <= set(WORDS)


@pytest.mark.parametrize("bound", [False, True], ids=["function", "method"])
def test_a_forward_that_a_trainer_has_replaced_is_not_the_models(bound: bool, tiny_tokenizer: Any) -> None:
    """TRL puts a method with its own loss and no cache in place of forward, and leaves gradient checkpointing on."""
    plain = build_tiny_llama()
    prompts = PromptSet("p", ("find a lamp", "make the tea", "fix the road"))
    before = generate(load_model(plain, tokenizer=tiny_tokenizer), prompts, max_new_tokens=4)
    own = plain.forward

    def with_loss(*args: Any, **kwargs: Any) -> Any:
        return own(*args[bound:], **kwargs | {"use_cache": False})

    replacement = MethodType(with_loss, plain) if bound else with_loss
    plain.forward = replacement
    plain.gradient_checkpointing_enable()
    plain.train()
    with pytest.warns(Notice, match="LlamaForCausalLM"):
        model = load_model(plain, tokenizer=tiny_tokenizer)
    assert generate(model, prompts, max_new_tokens=4).texts == before.texts
    assert plain.forward is replacement
