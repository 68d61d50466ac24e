"""Which kernel a Hugging Face model attends with, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def attending(hf_model: nn.Module, implementation: str) -> Iterator[None]:
    """Inside the block the model attends by this implementation (``"eager"``, ``"sdpa"``); afterwards by its own."""
    configs: dict[int, Any] = {
        id(c): c for m in hf_model.modules() if hasattr(c := getattr(m, "config", None), "_attn_implementation")
    }
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = implementation
        yield
    finally:
        for config, own in before:  # outer configurations first: setting one sets those inside it
            config._attn_implementation = own
