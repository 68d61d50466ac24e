"""Random weights of a model's true architecture, with a tokenizer trained on the spot: a script without its model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.models.settings import TINY, Model
from safecircuits.model.checkpoint_folder import write_checkpoint

CHAT = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
VOCABULARY = 400
MARK = "recipe.sha256"
"""The file that says what a folder of random weights was made from."""


def random_checkpoint(model: Model, scale: str, texts: Iterable[str], folder: Path) -> Path:
    """Write a checkpoint of the model's architecture with random weights to ``folder``, unless that very one is there.

    Args:
        scale: ``"tiny"`` for a few thousand parameters in float32, ``"full"`` for all of them in bfloat16.
        texts: what the tokenizer is trained on.
    """
    texts = list(texts)
    recipe = json.dumps([model.id, model.config, dict(model.sizes), scale, TINY, VOCABULARY, texts], default=str)
    mark = hashlib.sha256(recipe.encode()).hexdigest()
    if (folder / MARK).exists() and (folder / MARK).read_text(encoding="ascii") == mark:
        return folder
    import transformers
    from transformers import AutoModelForCausalLM

    if model.config is None:
        raise ValueError(f"{model.id} has no configuration here to make random weights of; give it without the option")
    tokenizer = byte_level_tokenizer(texts)
    kind, settings = model.config
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    sizes: dict[str, Any] = {}
    if scale == "tiny":
        sizes = {**TINY, "vocab_size": len(tokenizer), **model.sizes}
    config = getattr(transformers, kind)(**{**settings, **special, **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if scale == "tiny" else torch.bfloat16)
    write_checkpoint(made, tokenizer, folder, beside={MARK: mark})
    return folder


def byte_level_tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer with a chat template, trained on ``texts``, that can spell any other text too."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    backend = Tokenizer(BPE(unk_token="<unk>"))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = Decoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", chat_template=CHAT, **names)
