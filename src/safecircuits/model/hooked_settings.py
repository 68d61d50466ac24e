"""What TransformerLens's converters do not read of a configuration, given to a HookedTransformer all the same.

They compute rotary positions anew, from some of the ways in which a configuration can scale them, and read windows for
some architectures only. Hugging Face's own model has the frequencies ready, and its configuration the windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safecircuits.model.context import unscaled_positions


def complete(cfg: Any, hf_model: nn.Module) -> None:
    """Set the width of a head, of its rotated part, and the windows in TransformerLens's configuration, in place.

    Beyond the length from which on a batch's longest row scales all positions, there is no context.
    """
    config: Any = hf_model.config
    head = getattr(config, "head_dim", None)
    if head and head != cfg.d_head:
        cfg.d_head, cfg.attn_scale = head, float(head) ** 0.5
    rotation = Rotation.of(cfg, hf_model)
    if rotation is not None:
        cfg.rotary_dim = 2 * len(rotation.frequencies)
    if (unscaled := unscaled_positions(config)) is not None:
        cfg.n_ctx = min(cfg.n_ctx, unscaled)
    kinds, window = getattr(config, "layer_types", None) or (), getattr(config, "sliding_window", None)
    if window and "sliding_attention" in kinds and not cfg.use_local_attn:
        cfg.use_local_attn, cfg.window_size = True, window
        cfg.attn_types = ["local" if kind == "sliding_attention" else "global" for kind in kinds]


def rotate_as_hugging_face(hooked: Any, hf_model: nn.Module) -> None:
    """Let every attention of a HookedTransformer rotate by the frequencies of ``hf_model``, where it has one set."""
    rotation = Rotation.of(hooked.cfg, hf_model)
    if rotation is None:
        return
    for block in hooked.blocks:
        attention = block.attn
        attention.calculate_sin_cos_rotary = rotation  # asked again for longer prompts
        sin, cos = rotation(hooked.cfg.rotary_dim, len(attention.rotary_sin), dtype=attention.rotary_sin.dtype)
        attention.rotary_sin, attention.rotary_cos = (t.to(attention.rotary_sin.device) for t in (sin, cos))


@dataclass(frozen=True)
class Rotation:
    """Rotary positions: an angle per position for each pair of dimensions, and a factor on the rotated vectors."""

    frequencies: Float[Tensor, " pair"]
    factor: float

    @classmethod
    def of(cls, cfg: Any, hf_model: nn.Module) -> Rotation | None:
        """Those of a Hugging Face model; None where it has none, several, or rotates adjacent pairs (GPT-J)."""
        if cfg.positional_embedding_type != "rotary" or cfg.rotary_adjacent_pairs:
            return None
        found: list[Any] = [m for m in hf_model.modules() if isinstance(getattr(m, "inv_freq", None), Tensor)]
        if len(found) != 1 or found[0].inv_freq.is_meta:
            return None
        # What it was made with: a long prompt may have left other frequencies.
        frequencies: Tensor = getattr(found[0], "original_inv_freq", found[0].inv_freq)
        return cls(frequencies.detach().float().cpu(), float(getattr(found[0], "attention_scaling", 1.0)))

    def __call__(
        self, rotary_dim: int, n_ctx: int, base: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "n_ctx rotary_dim"], Float[Tensor, "n_ctx rotary_dim"]]:
        """Sine and cosine at each position, as ``AbstractAttention.calculate_sin_cos_rotary`` gives them."""
        del base  # is in the frequencies
        angles = torch.outer(torch.arange(n_ctx).float(), self.frequencies).repeat(1, 2)
        assert angles.shape[1] == rotary_dim
        return (self.factor * angles.sin()).to(dtype), (self.factor * angles.cos()).to(dtype)
