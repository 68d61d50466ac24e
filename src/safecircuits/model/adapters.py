"""Models with a PEFT adapter beside them, as analyses see them: merged, in a copy, and compared with what ran."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safecircuits.base.notices import notify
from safecircuits.model.packed import packing_of

ADAPTER_CONFIG = "adapter_config.json"
_TOKENS = 8


def is_peft(model: Any) -> bool:
    """Whether this is PEFT's own wrapper around a model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def merged_view(model: Any) -> nn.Module:
    """A plain Hugging Face model with the active adapters in its weights; ``model`` itself stays as it is.

    Raises:
        ValueError: for an adapter that no weights can take in, such as virtual tokens, or one that merges into
            something else than it computes.
    """
    if not hasattr(model, "merge_and_unload"):
        raise ValueError(
            f"a {type(model).__name__} has virtual tokens, which no weights can take in, so that there is no model to "
            "analyse: analyse its base model, model.get_base_model() (to train one beside it, see virtual_tokens)"
        )
    if (method := packing_of(model.get_base_model())) is not None:
        raise ValueError(
            f"the adapter of this {type(model).__name__} lies beside quantised weights ({method}), which cannot take "
            "it in without being rounded anew: load the unquantised base and put the adapter on it with "
            "PeftModel.from_pretrained(base, adapter_folder)"
        )
    merged: nn.Module = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    merged.requires_grad_(True)  # PEFT had switched that off for all but its adapters
    _require_same(model, merged)
    notify(f"a {type(model).__name__} is analysed as a merged copy: what is done to the copy, the adapter does not see")
    return merged.eval()


@torch.no_grad()
def _require_same(model: Any, merged: Any) -> None:
    """A ValueError unless both say the same of a few tokens: an adapter may be switched off, or not be mergeable."""
    was, device = model.training, next(merged.parameters()).device
    tokens = (torch.arange(_TOKENS, device=device) * 7 % merged.config.vocab_size)[None]
    try:
        want, got = (one(input_ids=tokens).logits.double() for one in (model.eval(), merged.eval()))
    finally:
        model.train(was)
    close = 1e-3 if next(merged.parameters()).dtype.itemsize > 2 else 0.1
    apart = float((got - want).norm() / want.norm())
    if not apart < close:
        raise ValueError(
            f"this {type(model).__name__} computes something else with its adapters beside it than merged (the logits "
            f"of {_TOKENS} tokens are {apart:.0%} apart): pass the model that is meant, model.merge_and_unload() or "
            "model.get_base_model()"
        )


def is_adapter_folder(source: Any) -> bool:
    """Whether this is a folder as PEFT saves an adapter, without the model that it is for."""
    folder = Path(source)
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").exists()


def load_adapter(folder: Path, load_base: Callable[[str], tuple[nn.Module, Any]]) -> tuple[nn.Module, Any]:
    """The model that an adapter's folder names, with the adapter merged, and the tokenizer that lies beside either.

    Args:
        load_base: how the base is loaded, by its name in ``adapter_config.json``.

    Raises:
        ImportError: without PEFT.
        ValueError: if the folder names no base, and for adapters as in ``merged_view``.
    """
    from peft import PeftModel
    from transformers import AutoTokenizer

    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the adapter in {str(folder)!r} does not say which model it is for (base_model_name_or_path): load that, "
            "put the adapter on it with PeftModel.from_pretrained, and pass the result"
        )
    try:
        model, tokenizer = load_base(base)
    except ValueError as error:
        raise ValueError(f"the adapter in {str(folder)!r} is for {base!r}: {error}") from error
    try:
        wrapped = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, OSError, KeyError) as error:
        raise ValueError(f"the adapter in {str(folder)!r} does not fit {base!r}: {error}") from error
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return merged_view(wrapped), tokenizer
