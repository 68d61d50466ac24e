"""A small random model of a large one's configuration: the same structure, few and narrow layers, short windows.

What a configuration switches on beyond thousands of tokens (a sliding window), or changes too little to be told from
the rounding of half precision, can be compared on such a model in a moment.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

TOKENS = 48
"""Tokens of the longest row on which a miniature, or a model that is as small, is compared."""

_WINDOW = 7
_HEADS, _NEURONS, _VOCABULARY = 4, 64, 96
_MOST = 50_000_000  # parameters: more are no miniature

# How configurations call the tokens that a layer looks back on.
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size", "local_attention")
_NARROW = ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "moe_intermediate_size")


def windows(config: Any) -> list[int]:
    """The lengths, in tokens, from which on some layer of the configuration no longer sees everything."""
    return [value for _, value in _settings(config, _WINDOWS)]


def miniature_of(hf_model: Any) -> Any | None:
    """A random float32 model on the CPU of the model's class and configuration, shrunk; None where there is none.

    Positions, norms, biases, activation, the order of kinds of layers, and the width of a head are the configuration's
    own. Windows become so short that ``TOKENS`` tokens go beyond them.
    """
    config = hf_model.config
    if config.get_text_config() is not config:
        return None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            small = _randomised(type(hf_model)(_shrunk(config)).float().eval())
            ids = torch.arange(TOKENS)[None] % small.config.vocab_size
            with torch.inference_mode():
                runs = bool(torch.isfinite(small(input_ids=ids, use_cache=False).logits).all())
            return small if runs and sum(p.numel() for p in small.parameters()) <= _MOST else None
    except Exception:  # a configuration whose widths hang together in ways unknown here: its caller says so
        return None


def _settings(config: Any, names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Those of ``names`` that hold a positive whole number."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield name, value


def _shrunk(config: Any) -> Any:
    small = copy.deepcopy(config)
    n_layers, n_heads, width = config.num_hidden_layers, config.num_attention_heads, config.hidden_size
    head = getattr(config, "head_dim", None) or width // n_heads
    kinds = getattr(config, "layer_types", None) or [None] * n_layers
    kept = max(min(2, n_layers), max(kinds.index(kind) + 1 for kind in set(kinds)))
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == n_layers:  # one setting a layer
            setattr(small, name, value[:kept])
    small.num_hidden_layers = kept
    small.num_attention_heads = heads = min(_HEADS, n_heads)
    for name, value in _settings(config, ("num_key_value_heads", "num_kv_heads")):
        setattr(small, name, 1 if value == 1 else heads if value == n_heads else max(1, heads // 2))
    small.hidden_size = heads * head if head * n_heads == width else (heads // 2 or 2) * head
    for name, value in _settings(config, _NARROW):
        setattr(small, name, min(value, _NEURONS))
    for name, value in _settings(config, _WINDOWS):
        setattr(small, name, min(value, _WINDOW))
    for name, value in _settings(config, ("pad_token_id", "bos_token_id", "eos_token_id")):
        setattr(small, name, value % 3)
    small.vocab_size = min(_VOCABULARY, config.vocab_size)
    return small


def _randomised(model: Any) -> Any:
    """Weights with which every part has its say: matrices that keep the size of what they are given, random norms."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.5 * float(parameter.shape[-1]) ** -0.5)
            else:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
    return model
