"""Localizers of blocks of layers."""

from __future__ import annotations

from typing import Any, Literal

import torch

from benchmarks.ground_truth.leaderboard.directions import writers_of
from benchmarks.ground_truth.leaderboard.registry import NotRun, localizer
from benchmarks.ground_truth.leaderboard.subjects import Subject
from safecircuits.base.vocabulary import LayerRange
from safecircuits.hooks.linear_maps import Matrix, components_of
from safecircuits.layers.decision import decision_layers
from safecircuits.layers.grid import scaling_grid
from safecircuits.layers.localization import localize
from safecircuits.layers.similarity import layer_gap

TOKENS = 8  # the embedded models' refusals show in their first words
ALPHA = {"up": 1.1, "down": 0.9}
MOST = 0.8
"""Of a quantity by layer: the shortest block that holds so much of it."""
MOST_LAYERS_OF_A_GRID = 12
"""In larger models a grid of all blocks takes hours."""


@localizer("decision layers", "block", "ours")
def decision(subject: Subject) -> LayerRange | None:
    seen, detector = subject.seen, subject.measured.detector
    return decision_layers(subject.model, seen.normal, seen.malicious, detector=detector).layers


@localizer("gap onset", "block", "Safety Layers")
def onset(subject: Subject) -> LayerRange | None:
    found = layer_gap(subject.model, subject.seen.normal, subject.seen.malicious).onset()
    return None if found is None else found.layers


def _bounds(subject: Subject, direction: Literal["up", "down"]) -> LayerRange | None:
    """The published search from the gap's onset, at the published step from 1."""
    start = layer_gap(subject.model, subject.seen.normal, subject.seen.malicious).onset()
    if start is None:
        return None
    return localize(subject.model, subject.over_rejection, start, alpha=ALPHA[direction], **_counting(subject)).layers


def _counting(subject: Subject) -> dict[str, Any]:
    """How refusals of over-rejection prompts are counted."""
    return {"max_new_tokens": TOKENS, "detector": subject.measured.detector}


@localizer("bounds, α > 1", "block", "Safety Layers")
def bounds_up(subject: Subject) -> LayerRange | None:
    return _bounds(subject, "up")


@localizer("bounds, α < 1", "block", "Safety Layers")
def bounds_down(subject: Subject) -> LayerRange | None:
    return _bounds(subject, "down")


@localizer("grid, α > 1", "block", "ours")
def grid(subject: Subject) -> LayerRange | NotRun:
    if (n := subject.shape.n_layers) > MOST_LAYERS_OF_A_GRID:
        return NotRun(f"{n} layers have {n * (n + 1) // 2} blocks, and each of them is scaled and asked everything")
    return scaling_grid(subject.model, subject.over_rejection, alpha=ALPHA["up"], **_counting(subject)).best.layers


@localizer("writers' layers", "block", "ours")
def writing(subject: Subject) -> LayerRange | None:
    """The shortest block whose heads and neurons write most of the direction that tells the prompts apart best."""
    shares = writers_of(subject)
    return shortest((shares.neurons.sum(1) + shares.heads.sum(1)).tolist())


@localizer("weights that moved", "block", "control", needs_base=True)
def moved(subject: Subject) -> LayerRange | None:
    """The shortest block with most of the squared change of the matrices: what one sees without any prompt."""
    ours, theirs = subject.model, subject.base
    by_layer = [
        sum(
            float((Matrix.of(ours, layer, c).read() - Matrix.of(theirs, layer, c).read()).square().sum())
            for c in components_of(ours)
        )
        for layer in range(subject.shape.n_layers)
    ]
    return shortest(by_layer)


@localizer("any block", "block", "control")
def anywhere(subject: Subject) -> LayerRange:
    """A block of random length at a random place, drawn by the member's name."""
    n = subject.shape.n_layers
    generator = torch.Generator().manual_seed(sum(map(ord, subject.name)))
    first, last = sorted(torch.randint(n, (2,), generator=generator).tolist())
    return LayerRange(first, last)


def shortest(by_layer: list[float], most: float = MOST) -> LayerRange | None:
    """The shortest block that holds ``most`` of what is above zero; of equals the one that holds more."""
    kept = [max(0.0, value) for value in by_layer]
    total = sum(kept)
    if total <= 0:
        return None
    n = len(kept)
    for length in range(1, n + 1):
        held = [sum(kept[first : first + length]) for first in range(n - length + 1)]
        if max(held) >= most * total:
            return LayerRange(first := held.index(max(held)), first + length - 1)
    return LayerRange(0, n - 1)
