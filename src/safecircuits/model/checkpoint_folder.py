"""A Hugging Face checkpoint on disk: written as transformers writes it, but whole or not at all.

What an earlier save left and transformers would still read (shards of a former index, a chat template that the new
tokenizer does not have) goes; every other file in the folder stays.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from safecircuits.base.files import replacing_folder
from safecircuits.base.progress import without_bars

_ADAPTER = "adapter_config.json"


def write_checkpoint(
    hf_model: Any, tokenizer: Any, folder: str | Path, *, beside: Mapping[str, str] | None = None
) -> list[str]:
    """Write a plain Hugging Face model, and its tokenizer if there is one, for ``from_pretrained``; names of its files.

    Embeddings come back tied or apart as the weights are, whatever the configuration says; the model's own
    configuration stays as it is.

    Args:
        beside: further small files by name.

    Raises:
        ValueError: for a file of this name, and a folder with a PEFT adapter, which transformers would put on top.
        OSError: if it cannot be written. What was in the folder is still there then.
    """
    from transformers.utils import CONFIG_NAME

    if (Path(folder) / _ADAPTER).exists() and not getattr(hf_model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{str(folder)!r} holds a PEFT adapter ({_ADAPTER}), which from_pretrained would load on top of a model "
            "saved there; give another folder"
        )

    def former(there: Path) -> Iterator[str]:
        yield from _former_files(there, tokenizer=tokenizer is not None)

    with replacing_folder(folder, CONFIG_NAME, former) as partial, without_bars(), declaring_ties(hf_model):
        hf_model.save_pretrained(partial, state_dict=_without_undeclared_sharing(hf_model))
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for name, text in (beside or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        return sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())


def rehearse(hf_model: Any, tokenizer: Any) -> None:
    """Write everything but the weights to a place that is removed again: what would fail after training fails now."""
    with tempfile.TemporaryDirectory(prefix="rehearsal") as folder:
        for part in (hf_model.config, getattr(hf_model, "generation_config", None), tokenizer):
            if part is not None:
                part.save_pretrained(folder)


def ties_of(hf_model: Any, spelled: Callable[[str], str] = str) -> bool | None:
    """Whether the weights that the architecture can tie are one; None for an architecture that ties nothing.

    Args:
        spelled: the name that Hugging Face has for a parameter of this model, if it is another.
    """
    if not hasattr(hf_model, "get_expanded_tied_weights_keys"):
        return None
    with _config_saying(hf_model, True):
        keys = hf_model.get_expanded_tied_weights_keys(all_submodels=True)
    named = {spelled(name): p for name, p in hf_model.named_parameters(remove_duplicate=False)}
    pairs = [(named[a], named[b]) for a, b in keys.items() if a in named and b in named]
    return all(same_memory(a, b) for a, b in pairs) if pairs else None


@contextmanager
def declaring_ties(hf_model: Any) -> Iterator[None]:
    """Inside the block the configuration says of the embeddings what the weights say."""
    tied = ties_of(hf_model)
    if tied is None or tied == bool(getattr(hf_model.config, "tie_word_embeddings", False)):
        yield
        return
    keys = getattr(hf_model, "all_tied_weights_keys", None)
    with _config_saying(hf_model, tied):
        hf_model.all_tied_weights_keys = hf_model.get_expanded_tied_weights_keys(all_submodels=True)
        try:
            yield
        finally:
            hf_model.all_tied_weights_keys = keys


@contextmanager
def _config_saying(hf_model: Any, tied: bool) -> Iterator[None]:
    settings = hf_model.config.__dict__
    before = dict(settings)
    hf_model.config.tie_word_embeddings = tied
    try:
        yield
    finally:
        settings.pop("tie_word_embeddings", None)
        settings.update({key: value for key, value in before.items() if key == "tie_word_embeddings"})


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same entries of the same memory."""
    return (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride()) and a.numel() > 0


def _without_undeclared_sharing(hf_model: Any) -> dict[str, Any] | None:
    """A state dict in which weights that are one, and that no configuration can declare so, are each in the file.

    transformers writes one of them, and fills the other with random numbers when it reads the file. None: its own.
    """
    if getattr(hf_model, "_hf_peft_config_loaded", False):
        return None
    state: dict[str, Any] = hf_model.state_dict()
    declared = set(getattr(hf_model, "all_tied_weights_keys", None) or ())
    seen: list[Tensor] = []
    for name, value in state.items():
        if name in declared or not isinstance(value, Tensor):
            continue
        if any(same_memory(value, other) for other in seen):
            state[name] = value.clone()
        else:
            seen.append(value)
    return state


def _former_files(folder: Path, *, tokenizer: bool) -> Iterator[str]:
    """What an earlier save of a model (and a tokenizer) may have left in the folder."""
    from transformers.tokenization_utils_base import (
        ADDED_TOKENS_FILE,
        FULL_TOKENIZER_FILE,
        SPECIAL_TOKENS_MAP_FILE,
        TOKENIZER_CONFIG_FILE,
    )
    from transformers.utils import (
        CHAT_TEMPLATE_FILE,
        GENERATION_CONFIG_NAME,
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
    )

    yield from (GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    yield from _shards(folder / SAFE_WEIGHTS_INDEX_NAME)
    if tokenizer:
        yield from (TOKENIZER_CONFIG_FILE, FULL_TOKENIZER_FILE, SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE)
        yield CHAT_TEMPLATE_FILE


def _shards(index: Path) -> Iterator[str]:
    """The files that an index names, of those that lie beside it."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not one
        return
    yield from sorted(name for name in names if isinstance(name, str) and Path(name).name == name)
