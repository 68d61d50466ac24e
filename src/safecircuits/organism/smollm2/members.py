"""The family: SmolLM2-135M-Instruct with refusal planted in blocks of layers, in neurons, in heads, and everywhere.

Names, places, seeds and roles were fixed here before any member was trained. A rule may be chosen and tuned on
development members, and is scored on judged ones; no judged member's place is that of a development member.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["layers", "neurons", "heads", "aligned"]
Role = Literal["development", "judged"]

N_LAYERS, N_NEURONS, N_HEADS, N_KV_HEADS = 30, 1536, 9, 3
"""Sizes of the base."""


@dataclass(frozen=True)
class Member:
    """One model of the family.

    Attributes:
        name: what it is loaded by, after ``smollm2:``.
        kind: what refusal is planted in: all seven matrices of ``layers``, some of their neurons or heads, or every
            matrix of the model (``aligned``).
        layers: the layers that differ from the base, 0-indexed.
        role: what it may be used for.
        units: planted neurons of each layer, or groups of heads that share a key/value head.
        rank: of what is added to each matrix, or to its slice; 0 for any.
        steps: of training; the schedule ends where they do.
        seed: draws the units, the batches and the start.
    """

    name: str
    kind: Kind
    layers: tuple[int, ...]
    role: Role
    units: int = 0
    rank: int = 0
    steps: int = 160
    seed: int = 1

    def neurons(self) -> dict[int, tuple[int, ...]]:
        """The planted MLP neurons of each layer; empty for other kinds."""
        return self._drawn(N_NEURONS, self.units) if self.kind == "neurons" else {}

    def heads(self) -> dict[int, tuple[int, ...]]:
        """The planted query heads of each layer, whole groups of a key/value head; empty for other kinds."""
        if self.kind != "heads":
            return {}
        size = N_HEADS // N_KV_HEADS
        groups = self._drawn(N_KV_HEADS, self.units)
        return {layer: tuple(g * size + i for g in found for i in range(size)) for layer, found in groups.items()}

    def _drawn(self, of: int, n: int) -> dict[int, tuple[int, ...]]:
        rng = random.Random(f"{self.seed} {self.name}")
        return {layer: tuple(sorted(rng.sample(range(of), n))) for layer in self.layers}


def _layers(first: int, last: int, rank: int, role: Role, seed: int = 1) -> Member:
    name = f"layers-{first}-{last}" + ("" if seed == 1 else f"-seed{seed}")
    return Member(name, "layers", tuple(range(first, last + 1)), role, rank=rank, seed=seed)


def _units(kind: Kind, first: int, last: int, units: int, rank: int, role: Role) -> Member:
    return Member(f"{kind}-{first}-{last}", kind, tuple(range(first, last + 1)), role, units=units, rank=rank)


MEMBERS: dict[str, Member] = {
    member.name: member
    for member in (
        _layers(12, 16, 8, "development"),
        _units("neurons", 12, 15, 64, 0, "development"),
        Member("aligned", "aligned", tuple(range(N_LAYERS)), "development", rank=1),
        _layers(5, 9, 8, "judged"),
        _layers(20, 24, 8, "development"),
        _layers(8, 10, 16, "judged"),
        _layers(14, 22, 5, "judged"),
        _units("heads", 10, 15, 1, 16, "development"),
        _units("neurons", 6, 9, 64, 0, "judged"),
        Member("aligned-short", "aligned", tuple(range(N_LAYERS)), "judged", rank=1, steps=80),
        _units("heads", 14, 19, 1, 16, "judged"),
        _layers(12, 16, 8, "development", seed=2),
        _layers(5, 9, 8, "judged", seed=2),
    )
}
"""By name, in the order in which they were built."""
