"""How long a prompt with its answer may be: one clear error instead of a raw one, or of a wrong number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from safecircuits.model.sites import is_bridge


@dataclass(frozen=True)
class Context:
    """The tokens that a model has a place for."""

    most: int | None
    """None where positions are computed, as Hugging Face's rotary ones are."""
    unscaled: int | None
    """Beyond as many, the longest row of a batch scales the positions of all rows (longrope, dynamic NTK)."""
    stated: int | None
    """What the configuration says."""

    @classmethod
    def of(cls, model: Any) -> Context:
        """Of a hooked model; a plain Hugging Face model knows its own."""
        cfg: Any = getattr(model, "cfg", None)
        if cfg is None:
            return cls(None, None, None)
        if not is_bridge(model):
            placed = cfg.positional_embedding_type in ("standard", "rotary", "shortformer")
            return cls(int(cfg.n_ctx) if placed else None, None, int(cfg.n_ctx))
        config = model.original_model.config.get_text_config()
        names = ("max_position_embeddings", "max_seq_len")
        stated = next((int(n) for n in (getattr(config, name, None) for name in names) if n), None)
        tables = (buffer for buffer in model.original_model.buffers() if buffer.ndim == 2)  # of angles: GPT-J, CodeGen
        fixed = any(len(table) == stated for table in tables)
        most = int(cfg.n_ctx) if hasattr(model, "pos_embed") else stated if fixed else None
        return cls(most, unscaled_positions(config), stated)

    def require(self, seen: Int[Tensor, "batch pos"]) -> None:
        """A ValueError for longer rows, which would fail in an embedding, on a GPU for good, or change each other."""
        # Counting the tokens of a batch waits for its device: only where the batch is as wide.
        if self.unscaled is not None and seen.shape[1] > self.unscaled and (n := _longest(seen)) > self.unscaled:
            raise ValueError(
                f"a prompt and its answer have {n} tokens or more: beyond {self.unscaled} this model scales the "
                "positions of all tokens, and by the longest prompt of a batch, so that prompts would change each "
                "other; shorten the longest prompts, or lower max_new_tokens"
            )
        if self.most is not None and seen.shape[1] > self.most and (n := _longest(seen)) > self.most:
            raise _too_long(n, self.most)

    @contextmanager
    def explaining(self, seen: Int[Tensor, "batch pos"]) -> Iterator[None]:
        """Around a pass: where it fails for rows beyond what the configuration states, that is what the error says."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError) as error:
            if self.stated is None or seen.shape[1] <= self.stated or (n := _longest(seen)) <= self.stated:
                raise
            raise _too_long(n, self.stated) from error


def unscaled_positions(config: Any) -> int | None:
    """The length up to which a configuration's rotary positions do not depend on the length; None if they never do."""
    rope = getattr(config, "rope_parameters", None) or {}
    limits = []
    for settings in (rope, *(value for value in rope.values() if isinstance(value, dict))):  # or one a kind of layer
        if settings.get("rope_type") == "longrope":
            original = settings.get("original_max_position_embeddings")
            limits.append(original or getattr(config, "original_max_position_embeddings", None))
        elif settings.get("rope_type") == "dynamic":
            limits.append(config.max_position_embeddings)
    return min((int(limit) for limit in limits if limit), default=None)


def _longest(seen: Int[Tensor, "batch pos"]) -> int:
    return int(seen.sum(1).max())


def _too_long(longest: int, most: int) -> ValueError:
    return ValueError(
        f"a prompt and its answer have {longest} tokens or more, but the model's context is {most}: shorten the "
        "longest prompts, or lower max_new_tokens"
    )
