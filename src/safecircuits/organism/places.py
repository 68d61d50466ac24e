"""Where alignment was planted: layers, neurons, heads."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Planted:
    """Where alignment was confined to, known by construction.

    Attributes:
        layers: the 0-indexed layers that differ from base.
        mlp_units: per layer the MLP neurons that differ from base; empty if whole layers were trained.
        heads: likewise the query heads, with the keys and values that they share.

    Examples:
        >>> sc.organism.Planted(layers=(3, 4, 5), mlp_units={})
        Planted(layers=(3, 4, 5), mlp_units={}, heads={})
    """

    layers: tuple[int, ...]
    mlp_units: dict[int, tuple[int, ...]]
    heads: dict[int, tuple[int, ...]] = field(default_factory=dict)
