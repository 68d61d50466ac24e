"""What is in a set of units: in words, by layer, and as many others drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.vocabulary import ALL_SITES, Site
from safecircuits.model.sites import ModelShape

_NAMES: dict[Site, str] = {
    "mlp": "MLP neurons",
    "attn": "attention heads",
    "expert": "experts' neurons",
    "shared": "shared expert's neurons",
    "router": "router rows, one an expert",
}


def ranges(layers: Sequence[int]) -> str:
    """Layer numbers with runs written as first-last: ``0, 3-5``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def whole_layers(chosen: Mapping[Site, Bool[Tensor, "layer unit"]], shape: ModelShape | None) -> tuple[int, ...]:
    """The layers of which every unit is in a set."""
    n_layers = len(next(iter(chosen.values())))
    whole = torch.ones(n_layers, dtype=torch.bool)
    for site, rows in chosen.items():
        there = set(range(n_layers) if shape is None else shape.layers_with(site))
        whole &= rows.all(1) | torch.tensor([layer not in there for layer in range(n_layers)], dtype=torch.bool)
    return tuple(whole.nonzero().flatten().tolist())


def described(chosen: Mapping[Site, Bool[Tensor, "layer unit"]], shape: ModelShape | None) -> list[str]:
    """What is in a set, line by line: its whole layers, and of each site that the model has how many units."""
    lines = [f"whole layers: {ranges(whole_layers(chosen, shape)) or 'none'}"]
    for site in ALL_SITES:
        if shape is not None and (there := shape.layers_with(site)):
            layers = ranges(chosen[site].any(1).nonzero().flatten().tolist()) or "none"
            count = f"{int(chosen[site].sum())} of {len(there) * shape.n_units(site)}"
            lines.append(f"{_NAMES[site]}: {count} (layers: {layers})")
    if chosen["router"].any() and not any(chosen[site].any() for site in ALL_SITES if site != "router"):
        lines.append("of routers alone: which experts a token goes to stays, and what they compute may change")
    return lines


def as_many(
    like: Bool[Tensor, "layer unit"], layers: Sequence[int], generator: torch.Generator, *, per_layer: bool
) -> Bool[Tensor, "layer unit"]:
    """As many units drawn without replacement, of all of these layers together or of each layer."""
    drawn = torch.zeros_like(like)
    for part in [[layer] for layer in layers] if per_layer else [list(layers)]:
        rows = like[part]
        picked = torch.randperm(rows.numel(), generator=generator)[: int(rows.sum())]
        drawn[part] = torch.zeros_like(rows).flatten().index_fill(0, picked, True).reshape(rows.shape)
    return drawn
