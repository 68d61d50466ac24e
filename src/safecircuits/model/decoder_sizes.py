"""The widths of a decoder, and the bytes that its activations take: of one layer at a time, or kept for gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderSizes:
    """Of a model, by its configuration."""

    n_layers: int
    d_model: int
    d_mlp: int
    gated: bool
    plain_mlp: bool
    """Whether gate, up and activation are operations of their own."""
    n_norms: int
    """In one layer."""
    n_heads: int
    d_heads: int
    """Width of all query heads together."""
    d_kv: int
    """Width of all key heads together."""
    d_vocab: int

    @classmethod
    def of(cls, config: Any) -> DecoderSizes:
        heads, width = int(config.num_attention_heads), int(config.hidden_size)
        head = int(getattr(config, "head_dim", None) or width // heads)
        kv = 1 if getattr(config, "multi_query", False) else getattr(config, "num_key_value_heads", None)
        widths = (getattr(config, name, None) for name in ("intermediate_size", "n_inner", "ffn_hidden_size"))
        gated = config.model_type not in ("gpt2", "gpt_neox", "bloom", "falcon", "opt", "gptj")
        sandwiched = config.model_type in ("gemma2", "gemma3_text")
        return cls(
            n_layers=int(config.num_hidden_layers),
            d_model=width,
            d_mlp=int(next(filter(None, widths), 4 * width)),
            gated=gated,
            plain_mlp=gated and config.model_type != "phi3",
            n_norms=4 if sandwiched else 2,
            n_heads=heads,
            d_heads=heads * head,
            d_kv=head * int(kv or heads),
            d_vocab=int(config.vocab_size),
        )

    @classmethod
    def of_hooked(cls, model: Any) -> DecoderSizes:
        """Of a hooked model, by TransformerLens's configuration."""
        cfg = model.cfg
        heads = int(cfg.n_heads)
        return cls(
            n_layers=int(cfg.n_layers),
            d_model=int(cfg.d_model),
            d_mlp=int(cfg.d_mlp or 4 * cfg.d_model),
            gated=bool(cfg.gated_mlp),
            plain_mlp=False,
            n_norms=2,
            n_heads=heads,
            d_heads=heads * int(cfg.d_head),
            d_kv=int(cfg.d_head) * int(getattr(cfg, "n_key_value_heads", None) or heads),
            d_vocab=int(cfg.d_vocab),
        )

    def forward_activations(self, rows: int, width: int, itemsize: int, *, counted: bool) -> int:
        """Live at once while no gradients are kept: the MLP of one layer, or the logits."""
        # The residual stream, its normalised copy and their hook points; gate, activation, up and product. A fused or
        # composite MLP holds half as much again, which is then also more than an attention with copied matrices.
        layer = (4 * self.d_model + (4 if self.plain_mlp else 6) * self.d_mlp) * itemsize
        if counted:
            layer += 8 * self.d_mlp  # converted for the moments
        # Where TransformerLens computes attention itself: scores, their masked copy and the pattern, in float32.
        attention = 4 * (self.d_model + self.d_heads) * itemsize + 3 * 4 * self.n_heads * width
        mask = rows * width * width
        return max(rows * width * max(layer, attention) + mask, rows * self.d_vocab * (itemsize + 4))

    def training_activations(self, rows: int, width: int, itemsize: int) -> int:
        """Kept for the backward pass: every layer's, and the logits with their gradient and log-softmax."""
        norms = self.n_norms * self.d_model * (itemsize + 2 * 4)  # computed in float32
        attention = (2 * self.d_heads + 2 * self.d_kv + self.d_model) * itemsize
        attention += self.n_heads * width * (itemsize + 4)  # patterns, and in float32 before they are rounded
        mlp = (4 if self.gated else 3) * self.d_mlp * itemsize
        logits = self.d_vocab * (itemsize + 2 * 4)
        return rows * width * (self.n_layers * (norms + attention + mlp) + logits)

    def gradient_activations(self, rows: int, width: int, itemsize: int) -> int:
        """The same for gradients of activations instead of weights, and two values for every unit of every layer."""
        units = 2 * self.n_layers * (self.d_mlp + self.d_heads) * itemsize
        return self.training_activations(rows, width, itemsize) + rows * width * units
