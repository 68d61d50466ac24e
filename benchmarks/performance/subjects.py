"""The models and prompts that are measured: random weights of a given shape, and the embedded models."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch

import safecircuits as sc
from benchmarks.performance.timing import device
from safecircuits.organism import catalog
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.prompts.templates import TEMPLATES

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4, "num_attention_heads": 4},
    "small": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
    "big": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
}
"""Llama shapes; with half as many key/value heads, and 8,192 tokens in the vocabulary."""


def prompts(n: int) -> PromptSet:
    """Short questions, as alike in length as the safety papers' are."""
    pool = [*catalog.prompts("over_rejection", "train"), *catalog.prompts("normal", "train")]
    random.Random(0).shuffle(pool)
    return PromptSet("questions", tuple((pool * (n // len(pool) + 1))[:n]))


def long_texts(n: int, n_tokens: int) -> PromptSet:
    """Prompts and responses of ``n_tokens`` tokens together, with the end of sequence, that have nothing in common."""
    generator = random.Random(0)
    words = sorted({word for prompt in prompts(500) for word in prompt.split() if word.isalpha()})
    texts = [[generator.choice(words) for _ in range(n_tokens - 2)] for _ in range(n)]
    half = n_tokens // 2
    return PromptSet("texts", tuple(" ".join(t[:half]) for t in texts), tuple(" ".join(t[half:]) for t in texts))


@cache
def tokenizer() -> Any:
    """Words, marks and line breaks are tokens, after a beginning of sequence: 26 that all Alpaca prompts share."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    split = Split(Regex(r"\n|##|#|\w+|[^\w\s]| +"), behavior="isolated")
    texts = [TEMPLATES["alpaca"], *prompts(5000)]
    pieces = sorted({piece for text in texts for piece, _ in split.pre_tokenize_str(text)})
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    # Spaces are dropped: each becomes the end-of-word that other tokenizers keep in the word.
    vocabulary = {piece: i for i, piece in enumerate([*special, *(p for p in pieces if p.strip(" "))])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    from tokenizers.pre_tokenizers import Sequence

    backend.pre_tokenizer = Sequence([Split(Regex(" +"), behavior="removed"), split])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip


def plain(shape: str, **changes: int) -> Any:
    """A random Llama, as Hugging Face has it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = SHAPES[shape] | changes
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, num_key_value_heads=settings["num_attention_heads"] // 2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(device())


def hooked(hf_model: Any, backend: Any = "bridge") -> Any:
    """The same weights as a hooked model."""
    return sc.load_model(hf_model, backend=backend, tokenizer=tokenizer())
