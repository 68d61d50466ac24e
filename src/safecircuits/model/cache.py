"""Keys, values and recurrent states that a model keeps between steps: rows taken, one more pass without keeping it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

# What a layer that is recurrent (Mamba, linear attention) keeps instead of keys and values, or beside them.
STATES = ("conv_states", "recurrent_states")


def recurrent(model: Any) -> bool:
    """Whether layers of a bridge hold states in which a token cannot be masked out again."""
    from transformers import DynamicCache

    layers = DynamicCache(config=model.original_model.config).layers
    return any(hasattr(layer, name) for layer in layers for name in STATES)


def layers_of(cache: Any) -> list[Any]:
    """A cache's layers, on either backend."""
    return list(cache.entries if hasattr(cache, "entries") else cache.layers)


def tensor_names(part: Any) -> tuple[str, str]:
    """What a cache's layer calls its keys and its values, on either backend."""
    return ("past_keys", "past_values") if hasattr(part, "past_keys") else ("keys", "values")


def take_rows(part: Any, taken: Int[Tensor, " row"]) -> None:
    """Leave in a layer's cache the rows that ``taken`` names; a layer that has not run has none."""
    for name in tensor_names(part):
        rows: Tensor | None = getattr(part, name, None)
        if rows is None:
            continue
        one = rows.shape[0] == 1  # a view will do, as the next step concatenates
        setattr(part, name, rows.expand(len(taken), *rows.shape[1:]) if one else rows.index_select(0, taken))
    for name in STATES:  # which the next step changes in place
        if hasattr(part, name):
            states: dict[int, Tensor | None] = getattr(part, name)
            setattr(part, name, {i: s if s is None else s.index_select(0, taken) for i, s in states.items()})


def read_only(cache: Any) -> Any:
    """The same cache for one more pass, in which new keys and values are used and not kept."""
    cache = copy.copy(cache)
    if hasattr(cache, "entries"):
        cache.entries = [copy.copy(entry) for entry in cache.entries]
        cache.freeze()
        return cache
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in cache.layers:
        layer.update = _joined(layer)
    return cache


def _joined(layer: Any) -> Any:
    def update(keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([layer.keys, keys], dim=-2), torch.cat([layer.values, values], dim=-2)

    return update
