"""Who writes a direction? The share of each head and neuron in what harmful prompts have more of it than harmless ones.

The residual stream is the sum of what the embedding, every head and every neuron have written to it. So the difference
of means along a direction, at the layer and token where it was measured, is a sum over these writers (direct
attribution): each one's share is the difference of its mean activations times what its output weights have of the
direction. Biases are the same for all prompts and drop out. The parts sum to the whole, and that is checked against the
stream itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.resamples import multiplicities
from safecircuits.base.vocabulary import SITES, Site
from safecircuits.direction.means import require_apart
from safecircuits.direction.vector import Direction, direction_of
from safecircuits.hooks.passes import running
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.attach import HookFn
from safecircuits.model.sites import HookedModel, ModelShape, output_weight, resid_post, tokenizer_of, unit_hook
from safecircuits.prompts.batching import Batch
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd

_OFF = 1e-2
"""Of the whole: how far the sum of the parts may be from it, for rounding."""

_DRAWS = 500

_COLUMNS: tuple[Site, Site] = ("attn", "mlp")


@dataclass(frozen=True)
class DirectionWriters(Result):
    """Shares of a direction; ``embedding``, all heads and all neurons together are 1.

    Attributes:
        neurons, heads: 0 in layers after the direction's own; below 0 is what writes against it.
        low, high: 95 % bootstrap interval of each layer's attention (column 0) and MLP (1), over prompts.
        whole: the difference of means along the direction, read off the residual stream.

    Examples:
        >>> found = sc.direction.mean_directions(model, malicious, normal).refusal(layer=5)
        >>> writers = sc.direction.direction_writers(model, found, malicious, normal)
        >>> round(float(writers.neurons.sum() + writers.heads.sum()) + writers.embedding, 3)
        1.0
        >>> writers.top(24).n_units()
        24
    """

    neurons: Float[Tensor, "layer d_mlp"]
    heads: Float[Tensor, "layer head"]
    embedding: float
    low: Float[Tensor, "layer two"]
    high: Float[Tensor, "layer two"]
    whole: float
    direction: Direction
    shape: ModelShape
    provenance: dict[str, Any]

    def top(self, k: int) -> FreezeMask:
        """The ``k`` units of the largest shares, neurons and heads alike, as a mask for ``frozen``.

        Raises:
            ValueError: for more units than write the direction at all.
        """
        flat = torch.cat([self.neurons.flatten(), self.heads.flatten()])
        writing = int((flat > 0).sum())
        if not 1 <= k <= writing:
            raise ValueError(f"{writing} units write this direction, so the top is of 1 to {writing} of them, not {k}")
        chosen = torch.zeros(len(flat), dtype=torch.bool)
        chosen[flat.argsort(descending=True, stable=True)[:k]] = True
        n = self.neurons.numel()
        parts: dict[Site, Tensor] = {
            "mlp": chosen[:n].reshape(self.neurons.shape),
            "attn": chosen[n:].reshape(self.heads.shape),
        }
        return FreezeMask.where(parts, self.shape)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer: the shares of attention and MLP with their intervals, and the largest unit of each."""
        import pandas as pd

        rows = []
        for layer in range(len(self.heads)):
            row: dict[str, Any] = {"layer": layer}
            for column, (name, shares) in enumerate((("attention", self.heads), ("mlp", self.neurons))):
                row |= {name: float(shares[layer].sum()), f"{name}_low": float(self.low[layer, column])}
                row |= {f"{name}_high": float(self.high[layer, column]), f"{name}_top": int(shares[layer].argmax())}
            rows.append(row)
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """Shares of the ``embedding``, and of ``attention`` and ``mlp`` by layer with ``low`` and ``high``."""
        return {
            "embedding": self.embedding,
            "attention": self.heads.sum(1).numpy(),
            "mlp": self.neurons.sum(1).numpy(),
            "low": self.low.numpy(),
            "high": self.high.numpy(),
        }


@checked
def direction_writers(
    model: HookedModel,
    direction: Direction,
    harmful: PromptSet | Sequence[str],
    harmless: PromptSet | Sequence[str],
    *,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> DirectionWriters:
    """Which heads and neurons write a direction, up to the layer and at the token where it was measured, in one pass.

    Raises:
        ValueError: for a plain vector or another model's direction; for prompts that have no more of the direction when
            harmful; and where the parts do not make up the whole, since something stands between a projection and the
            residual stream (a norm in Gemma-2 and OLMo-2, a factor in Granite, a mixture of experts).

    Examples:
        >>> found = sc.direction.mean_directions(model, malicious, normal).refusal(layer=5)
        >>> frame = sc.direction.direction_writers(model, found, malicious, normal).to_frame()
    """
    if not isinstance(direction_of(model, direction), Direction):
        raise ValueError("a plain vector has no layer and token of its own at which to ask who writes it")
    a, b = require_apart(harmful, harmless)
    tokenizer = tokenizer_of(model)
    examples = [e for prompts in (a, b) for e in encode(tokenizer, prompts, template=template, system=system)]
    layers, unit, shape = range(direction.layer + 1), direction.unit, ModelShape.of(model)
    written: dict[str, Tensor] = {}  # by hook point, [prompt unit], along the direction
    rows: list[int] = []
    kept: dict[str, Tensor] = {}

    def along(name: str, weight: Tensor, n_units: int) -> HookFn:
        share = weight.double() @ unit.to(weight.device)  # of each channel
        written[name] = torch.zeros(len(examples), n_units, dtype=torch.float64)

        def store(activation: Tensor) -> None:
            here = activation[:, direction.position].flatten(1).double() * share.to(activation.device)
            kept[name] = here.reshape(len(here), n_units, -1).sum(2).cpu()

        return store

    hooks = {
        unit_hook(site, layer): along(unit_hook(site, layer), output_weight(model, site, layer), shape.n_units(site))
        for layer in layers
        for site in SITES
    }
    identity = torch.eye(shape.d_model, dtype=torch.float64)
    for name in ("blocks.0.hook_resid_pre", resid_post(direction.layer)):
        hooks[name] = along(name, identity, 1)

    def before(batch: Batch, _copies: int) -> None:
        rows[:] = batch.rows

    def after() -> None:
        for name, values in kept.items():
            if rows:
                written[name][rows] = values

    with running(model, hooks) as runner:
        runner.watch(
            examples,
            before,
            after,
            last_layer=direction.layer,
            own=-direction.position,
            max_tokens=max_tokens,
            what="writers of the direction",
            progress=progress,
        )
    first = torch.arange(len(examples)) < len(a)

    def gap(values: Tensor) -> Tensor:
        return values[first].mean(0) - values[~first].mean(0)

    whole = float(gap(written[resid_post(direction.layer)]))
    if whole <= 0:
        raise ValueError("these harmful prompts have no more of the direction than the harmless ones: nothing to share")
    embedding = float(gap(written["blocks.0.hook_resid_pre"])) / whole
    shares = {site: torch.zeros(shape.n_layers, shape.n_units(site), dtype=torch.float64) for site in SITES}
    by_layer = torch.zeros(shape.n_layers, 2, len(examples), dtype=torch.float64)
    for layer in layers:
        for column, site in enumerate(_COLUMNS):
            values = written[unit_hook(site, layer)]
            shares[site][layer] = gap(values) / whole
            by_layer[layer, column] = values.sum(1)
    total = embedding + sum(float(part.sum()) for part in shares.values())
    if abs(total - 1) > _OFF:
        raise ValueError(
            f"what this {shape.architecture}'s heads and neurons write comes to {total:.2f} of what the residual "
            "stream has of the direction: something stands between them, such as a norm behind a sublayer, so their "
            "shares would not be those of the model"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = [multiplicities(size, _DRAWS, generator) / size for size in (len(a), len(b))]
    spread = by_layer[..., first] @ drawn[0].T - by_layer[..., ~first] @ drawn[1].T
    ends = written[resid_post(direction.layer)][:, 0]
    spread = spread / (ends[first] @ drawn[0].T - ends[~first] @ drawn[1].T)
    low, high = (torch.quantile(spread, q, dim=-1) for q in (0.025, 0.975))
    provenance = {"harmful": a.identity, "harmless": b.identity, "template": str(template), "system": system}
    return DirectionWriters(shares["mlp"], shares["attn"], embedding, low, high, whole, direction, shape, provenance)
