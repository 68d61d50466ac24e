"""Several models, one at a time, asked in the same way: two large models never need to fit together."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from safecircuits.base.progress import track
from safecircuits.model.load import Backend, load_model
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.templates import resolve_template

T = TypeVar("T")
Source = HookedModel | str | Path | Callable[[], HookedModel]
"""A hooked model; what ``load_model`` loads; or a function that makes a hooked model when its turn comes."""


def measure_each(
    models: Mapping[str, Source],
    measure: Callable[[HookedModel, str], T],
    *,
    template: str | Mapping[str, str] = "auto",
    backend: Backend = "bridge",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> tuple[dict[str, T], dict[str, str]]:
    """What ``measure(model, template)`` finds in each model, and the template that each was asked in.

    Models given as a name, a folder or a function are loaded when their turn comes and let go before the next one.

    Args:
        template: for all models, or by name. An aligned model often has a chat template where its base has none, so
            that ``"auto"`` would ask them differently: that is an error, not a finding.
        backend, dtype, device: of models that are loaded here.

    Raises:
        ValueError: for no models or none by name, a plain Hugging Face model, and for models whose templates differ
            without being named.
    """
    if not isinstance(models, Mapping):
        raise ValueError(f"models are given by name, such as {{'aligned': model}}, not as a {type(models).__name__}")
    if not models:
        raise ValueError("there are no models to compare: give at least one by name, such as {'aligned': model}")
    if isinstance(template, Mapping) and (missing := [name for name in models if name not in template]):
        raise ValueError(f"template= names no template for {missing[0]!r}; name one for each model")
    found: dict[str, T] = {}
    used: dict[str, str] = {}
    for name, source in track(models.items(), "models", total=len(models), enabled=progress):
        made: Any = source() if callable(source) and not hasattr(source, "parameters") else source
        if isinstance(made, nn.Module) and not hasattr(made, "hook_dict"):
            raise ValueError(
                f"{name!r} is a plain {type(made).__name__}, which has no tokenizer: pass load_model(it, tokenizer=...)"
            )
        model = load_model(made, backend=backend, dtype=dtype, device=device)
        del made
        used[name] = resolve_template(model.tokenizer, template if isinstance(template, str) else template[name])
        if isinstance(template, str) and len(set(used.values())) > 1:
            listed = ", ".join(f"{name}: {template!r}" for name, template in used.items())
            raise ValueError(
                f"template={template!r} is not the same for all models ({listed}), so their curves would differ "
                "by the template too: name one for all, such as template='alpaca', or one for each model"
            )
        found[name] = measure(model, used[name])
        del model
        release()
    return found, used


def release() -> None:
    """Give back the memory of models that nothing but themselves refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def described(source: Source) -> str:
    """A source in words, for the record."""
    return str(source) if isinstance(source, str | Path) else type(source).__name__
