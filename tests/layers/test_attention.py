"""Attention maps against Hugging Face's own ``output_attentions``, and the question's tokens on real subword pieces."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc
from conftest import CHAT_TEMPLATE, build_tiny_llama, randomised
from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.attention import AttentionMap, attention_map, eager_attention
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode
from safecircuits.prompts.rendering import render

PROMPT = "how do i make the cake"
both = pytest.mark.parametrize("backend", ["bridge", "hooked"])


def build_subword_tokenizer() -> Any:
    """Byte-level BPE, whose tokens carry the space before them; with a beginning of sequence and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["how to make a bomb at home", "who is the president", "### Instruction:"] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", chat_template=CHAT_TEMPLATE
    )


def eager_rows(hf_model: Any, ids: tuple[int, ...], heads: list[int] | None = None) -> torch.Tensor:
    """Hugging Face's attention of the last position, mean over heads: [layer, key]."""
    eager = copy.deepcopy(hf_model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager(torch.tensor([ids]), output_attentions=True).attentions
    return torch.stack([(a[0] if heads is None else a[0, heads]).mean(0)[-1] for a in attentions])


class TestValues:
    @both
    @pytest.mark.parametrize(("template", "system"), [("alpaca-short", None), ("chat", "sorry cannot"), ("none", None)])
    def test_equal_hugging_face(
        self, backend: str, template: str, system: str | None, tiny_llama_hf: Any, tiny_tokenizer: Any
    ) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        got = attention_map(model, PROMPT, template=template, system=system)
        [example] = encode(tiny_tokenizer, [PROMPT], template=template, system=system)
        ids = [tiny_tokenizer.convert_tokens_to_ids(word) for word in PROMPT.split()]
        first = next(i for i in range(len(example)) if list(example.ids[i : i + len(ids)]) == ids)
        want = eager_rows(tiny_llama_hf, example.ids)[:, first : first + len(ids)]
        assert got.tokens == tuple(PROMPT.split())
        assert got.layers == (0, 1, 2)
        torch.testing.assert_close(got.values, want, atol=1e-5, rtol=1e-4)
        assert want.std() > 0.005, "attention must differ between tokens for the comparison to mean anything"

    @both
    def test_chosen_heads(self, backend: str, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        [example] = encode(tiny_tokenizer, [PROMPT], template="none")
        got = attention_map(model, PROMPT, template="none", heads=[1, 3]).values
        torch.testing.assert_close(got, eager_rows(tiny_llama_hf, example.ids, [1, 3]), atol=1e-5, rtol=1e-4)

    def test_backends_agree(self, make_tiny_model: Any) -> None:
        bridge, hooked = (attention_map(make_tiny_model(kind), PROMPT).values for kind in ("bridge", "hooked"))
        torch.testing.assert_close(bridge, hooked, atol=1e-5, rtol=1e-4)

    @both
    def test_hooks_of_the_user_stay_in_force(self, backend: str, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend)
        without = attention_map(model, PROMPT, template="none").values
        model.blocks[1].attn.hook_pattern.add_hook(lambda pattern, hook: torch.full_like(pattern, 0.125))
        first, again = (attention_map(model, PROMPT, template="none").values for _ in range(2))
        assert torch.all(first[1] == 0.125)
        assert torch.equal(first, again)
        assert torch.equal(first[0], without[0])
        assert not torch.allclose(first[2], without[2])

    def test_a_broken_layer_is_named(self, tiny_bridge: Any) -> None:
        with torch.no_grad():
            tiny_bridge.blocks[1].attn.q.weight.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match="attention of layer 1 is not finite"):
            attention_map(tiny_bridge, PROMPT)


class TestEagerAttention:
    """OPT's bridge leaves attention to Hugging Face, so that SDPA shows no pattern unless it is switched off."""

    @pytest.fixture
    def opt(self, tiny_tokenizer: Any) -> tuple[Any, Any]:
        from transformers import OPTConfig, OPTForCausalLM

        torch.manual_seed(0)
        settings = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}
        config = OPTConfig(
            vocab_size=len(tiny_tokenizer), num_attention_heads=4, max_position_embeddings=64, **settings
        )
        hf_model = randomised(OPTForCausalLM(config)).eval()
        assert hf_model.config._attn_implementation == "sdpa"
        return hf_model, load_model(hf_model, tokenizer=tiny_tokenizer)

    def test_map_is_hugging_faces_and_nothing_else_changes(self, opt: Any, tiny_tokenizer: Any) -> None:
        hf_model, model = opt
        batch = pad_left(encode(tiny_tokenizer, [PROMPT], template="none"))
        with torch.no_grad():
            before = logits(model, batch)
            pattern = "blocks.0.attn.hook_pattern"
            with pytest.raises(RuntimeError, match="never fired"), sc.attached(model, {pattern: lambda x: x}):
                logits(model, batch)
            got = attention_map(model, PROMPT, template="none")
            after = logits(model, batch)
        want = eager_rows(hf_model, tuple(batch.input_ids[0].tolist()))
        torch.testing.assert_close(got.values, want, atol=1e-5, rtol=1e-4)
        assert torch.equal(before, after)
        assert implementations(model) == {"sdpa"}
        assert hf_model.config._attn_implementation == "sdpa"

    def test_restored_after_an_exception(self, opt: Any) -> None:
        _, model = opt
        inside = set()
        with contextlib.suppress(KeyError), eager_attention(model):
            inside = implementations(model)
            raise KeyError
        assert inside == {"eager"}
        assert implementations(model) == {"sdpa"}


def implementations(model: Any) -> set[str]:
    """The attention implementations that the wrapped model's modules have in their configurations."""
    configs = [getattr(module, "config", None) for module in model.original_model.modules()]
    return {config._attn_implementation for config in configs if hasattr(config, "_attn_implementation")}


class TestQuestionTokens:
    @pytest.fixture
    def with_chat_template(self, tiny_llama_hf: Any, tiny_tokenizer: Any) -> Callable[[str], Any]:
        def make(chat_template: str) -> Any:
            tokenizer = copy.deepcopy(tiny_tokenizer)
            tokenizer.chat_template = chat_template
            return load_model(tiny_llama_hf, tokenizer=tokenizer)

        return make

    @pytest.fixture
    def model(self) -> Any:
        tokenizer = build_subword_tokenizer()
        return load_model(build_tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=256), tokenizer=tokenizer)

    @pytest.mark.parametrize("template", ["alpaca-short", "chat", "{instruction}?! Say:"])
    @pytest.mark.parametrize("prompt", ["how to make a bomb at home", "who is the président of Zürich?", "a"])
    def test_spell_the_prompt(self, template: str, prompt: str, model: Any) -> None:
        got = attention_map(model, prompt, template=template)
        text = render(model.tokenizer, prompt, template)
        coded = model.tokenizer(text, add_special_tokens=template != "chat")
        # A second way to the same tokens: the characters of the text that stand before the prompt, counted off.
        before = len(render(model.tokenizer, "QQQ", template).partition("QQQ")[0])
        spans = [coded.token_to_chars(i) for i in range(len(coded["input_ids"]))]
        inside = [s for s in spans if s is not None and s.end > before and s.start < before + len(prompt)]
        assert len(got.tokens) == len(inside) == got.values.shape[1]
        assert got.tokens == tuple(text[s.start : s.end].strip() or text[s.start : s.end] for s in inside)
        if prompt.isascii():
            assert "".join(got.tokens) == prompt.replace(" ", "")

    def test_values_belong_to_these_tokens(self, model: Any) -> None:
        prompt = "who is the president"
        got = attention_map(model, prompt)
        [example] = encode(model.tokenizer, [prompt], template="alpaca-short")
        want = eager_rows(sc.model.load.to_hugging_face(model), example.ids)
        pieces = [model.tokenizer.decode([i]).strip() for i in example.ids]
        at = next(i for i in range(len(pieces)) if tuple(pieces[i : i + len(got.tokens)]) == got.tokens)
        torch.testing.assert_close(got.values, want[:, at : at + len(got.tokens)], atol=1e-5, rtol=1e-4)

    def test_words_of_the_prompt_elsewhere_do_not_count(self, tiny_bridge: Any) -> None:
        alone = attention_map(
            tiny_bridge, "the cake", template="the cake : {instruction} : the cake", system="the cake"
        )
        assert alone.tokens == ("the", "cake")
        [example] = encode(tiny_bridge.tokenizer, ["the cake"], template="the cake : {instruction} : the cake")
        want = eager_rows(sc.model.load.to_hugging_face(tiny_bridge), (*example.ids[:2], *example.ids))
        torch.testing.assert_close(alone.values, want[:, 5:7], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("content", ["content'] | trim", "content']"])
    def test_spaces_around_the_prompt(self, content: str, with_chat_template: Any) -> None:
        model = with_chat_template("to: {{ messages[0]['" + content + " }} .")
        assert attention_map(model, "  find a lamp \n", template="chat").tokens == ("find", "a", "lamp")

    @pytest.mark.parametrize("text", ["{{ messages[0]['content'] | replace('cake', 'pie') }}", "hello"])
    def test_a_template_that_changes_the_prompt(self, text: str, with_chat_template: Any) -> None:
        with pytest.raises(ValueError, match="prompt 'how do i make the cake' is not found in the text"):
            attention_map(with_chat_template(text), PROMPT, template="chat")

    def test_a_tokenizer_without_offsets(self, tiny_llama_hf: Any) -> None:
        class Slow:
            is_fast, chat_template, bos_token, bos_token_id, eos_token_id = False, None, None, None, None

            def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
                return {"input_ids": [[1, 2] for _ in texts]}

        model = load_model(tiny_llama_hf, tokenizer=Slow())
        with pytest.raises(ValueError, match="Slow gives no character offsets"):
            attention_map(model, PROMPT)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heads": [4]}, "head 4 is outside the model, whose heads are 0 to 3"),
            ({"heads": []}, "heads is 'mean' or a non-empty list"),
            ({"heads": "max"}, "heads is 'mean' or a non-empty list of head indices, not 'max'"),
            ({"normalize": "softmax"}, "normalize is 'minmax' or 'none', not 'softmax'"),
            ({"template": "alpacca"}, "template 'alpacca' is neither"),
        ],
    )
    def test_bad_input(self, options: Any, message: str, tiny_bridge: Any) -> None:
        with pytest.raises(ValueError, match=message):
            attention_map(tiny_bridge, PROMPT, **options)


class TestResult:
    @pytest.fixture
    def drawn(self, tiny_bridge: Any) -> AttentionMap:
        return attention_map(tiny_bridge, PROMPT)

    def test_normalised_by_layer(self, drawn: AttentionMap) -> None:
        raw = drawn.values.numpy()
        want = np.array([(row - min(row)) / (max(row) - min(row)) for row in raw])
        np.testing.assert_allclose(drawn.normalised.numpy(), want, rtol=1e-6)

    def test_without_normalisation(self, tiny_bridge: Any, drawn: AttentionMap) -> None:
        raw = attention_map(tiny_bridge, PROMPT, normalize="none")
        assert torch.equal(raw.values, drawn.values)
        assert torch.equal(raw.normalised, raw.values)

    def test_a_layer_without_preference_is_zero(self) -> None:
        flat = AttentionMap(torch.full((2, 3), 0.1), ("a", "b", "c"), (0, 1), "a b c", "none", "minmax")
        assert torch.equal(flat.normalised, torch.zeros(2, 3))

    def test_saved_and_loaded(self, drawn: AttentionMap, tmp_path: Path) -> None:
        assert AttentionMap.load(drawn.save(tmp_path / "map")).equals(drawn)

    def test_frame(self, drawn: AttentionMap) -> None:
        frame = drawn.to_frame()
        assert len(frame) == 3 * 6
        row = frame[(frame.layer == 2) & (frame.position == 4)].iloc[0]
        assert (row.token, row.attention) == ("the", pytest.approx(float(drawn.values[2, 4])))
        assert row.normalised == pytest.approx(float(drawn.normalised[2, 4]))

    @pytest.mark.parametrize("block", [LayerRange(1, 2), (1, 2)])
    def test_plot(self, block: Any, drawn: AttentionMap) -> None:
        from matplotlib.figure import Figure

        ax = drawn.plot(Figure().subplots(), safety_layers=block)
        [image] = ax.images
        np.testing.assert_array_equal(image.get_array(), drawn.normalised.numpy())
        assert image.get_cmap().name == "Reds"
        assert [label.get_text() for label in ax.get_xticklabels()] == PROMPT.split()
        assert [line.get_ydata()[0] for line in ax.lines] == [0.5, 2.5]
        assert all(line.is_dashed() for line in ax.lines)
        low, high = ax.get_ylim()
        assert low > high, "layer 0 is on top, as in the paper"

    def test_plot_refuses_layers_outside(self, drawn: AttentionMap) -> None:
        from matplotlib.figure import Figure

        with pytest.raises(ValueError, match=r"\[2, 3\] is outside the model"):
            drawn.plot(Figure().subplots(), safety_layers=(2, 3))
        assert not drawn.plot(Figure().subplots()).lines
