"""Localizers of directions, each with further ones at the same place, so that more than one can be taken out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.ground_truth.leaderboard.registry import Directions, localizer
from benchmarks.ground_truth.leaderboard.subjects import Subject
from safecircuits.direction.accuracy import balanced_accuracy
from safecircuits.direction.interventions import To
from safecircuits.direction.prompt_states import PromptStates, prompt_states
from safecircuits.direction.refusal import RefusalDirection, Rule, refusal_direction
from safecircuits.direction.selection_scores import Ablation
from safecircuits.direction.vector import Direction
from safecircuits.direction.writers import DirectionWriters, direction_writers
from safecircuits.model.sites import HookedModel
from safecircuits.units.answer_tokens import find_answer_tokens

RANK = 4
"""How many directions are given, the best first."""

SHALLOW = 0.8
"""Of the layers: the published rule looks no deeper."""

RIDGE = 0.1
"""Of the mean variance, added to covariances."""

Rows = Float[Tensor, "row d_model"]


def best_place(subject: Subject) -> tuple[PromptStates, int]:
    """The residual streams that are seen, and the layer at whose last token half of them tell the other half apart.

    The earliest of equals, among the first 80 % of the layers.
    """
    return subject.states(), subject.shared.get("best layer", lambda: _best_layer(subject))


def _best_layer(subject: Subject) -> int:
    malicious, normal = subject.seen.malicious, subject.seen.normal
    half = len(normal) // 2
    first = prompt_states(subject.model, malicious[:half], normal[:half])
    others = prompt_states(subject.model, malicious[half:], normal[half:])
    accuracy = balanced_accuracy(first, others)[: max(1, round(SHALLOW * subject.shape.n_layers)), -1]
    return int(accuracy.argmax())


def mean_difference(subject: Subject) -> Direction:
    """Harmful minus harmless mean at the place where it tells held-out prompts apart best."""
    states, layer = best_place(subject)
    return directions_at(states, layer, -1, states.difference()[layer, -1][None], "harmless").best[0]


def writers_of(subject: Subject) -> DirectionWriters:
    """The share of that direction that each head and neuron writes."""

    def make() -> DirectionWriters:
        seen = subject.seen
        return direction_writers(subject.model, mean_difference(subject), seen.malicious, seen.normal)

    return subject.shared.get("writers", make)


def directions_at(states: PromptStates, layer: int, position: int, rows: Rows, to: To) -> Directions:
    """The rows, each without what those before it have, as directions of one place; those of no length are left out."""
    column = states.positions.index(position)
    made: list[Direction] = []
    for row in rows.double():
        left = row.clone()
        for before in made:
            left -= (left @ before.unit) * before.unit
        if float(left.norm()) > 1e-6 * max(float(row.norm()), 1e-30):
            levels = states.places[:, column].double() @ (left / left.norm())
            made.append(Direction(left.float(), layer, position, levels, states.shape, dict(states.provenance)))
    return Directions(tuple(made[:RANK]), to)


def _chosen(subject: Subject, rule: Rule, ablation: Ablation) -> Directions | None:
    def make() -> RefusalDirection:
        seen, how = subject.seen, {"detector": subject.measured.detector, "controls": 0}
        return refusal_direction(subject.model, seen.malicious, seen.normal, ablation=ablation, **how)

    found = subject.shared.get(("candidates", ablation), make)
    try:
        layer, position = (chosen := found.choose(rule)).layer, chosen.position
    except ValueError:  # the rule keeps no candidate
        return None
    states, column = subject.states(), found.directions.column(position)
    near = sorted(range(subject.shape.n_layers), key=lambda one: (abs(one - layer), one))
    rows = found.directions.difference[near, column]
    to: To = "zero" if ablation == "zero" else "harmless"
    return directions_at(states, layer, position, rows, to)


@localizer("mean difference, published rule", "direction", "Arditi et al. 2024")
def published(subject: Subject) -> Directions | None:
    return _chosen(subject, "published", "zero")


@localizer("mean difference, affine, published rule", "direction", "Marshall et al. 2024")
def affine(subject: Subject) -> Directions | None:
    return _chosen(subject, "published", "affine")


@localizer("mean difference, affine, bypass rule", "direction", "ours")
def bypass(subject: Subject) -> Directions | None:
    return _chosen(subject, "bypass", "affine")


@localizer("mean difference, by accuracy", "direction", "ours")
def by_accuracy(subject: Subject) -> Directions:
    return _at_best(subject, lambda states, layer: states.difference()[[layer, max(0, layer - 1)], -1])


@localizer("harmfulness, at the instruction's last token", "direction", "Zhao et al. 2025")
def harmfulness(subject: Subject) -> Directions:
    states, layer = best_place(subject)
    return directions_at(states, layer, states.positions[0], states.difference()[layer, 0][None], "harmless")


@localizer("first principal components", "direction", "Zou et al. 2023")
def components(subject: Subject) -> Directions:
    """Of the differences of harmful and harmless prompts taken pair by pair, uncentred (RepE's reading vector)."""

    def rows(states: PromptStates, layer: int) -> Rows:
        harmful, harmless = _apart(states, layer)
        rows: Tensor = torch.linalg.svd(harmful - harmless, full_matrices=False)[2]
        return rows[:RANK]

    return _at_best(subject, rows)


@localizer("linear discriminant", "direction", "Fisher 1936")
def discriminant(subject: Subject) -> Directions:
    """What tells the two kinds apart best, then what does so without it (nullspace projection)."""

    def rows(states: PromptStates, layer: int) -> Rows:
        a, b = _apart(states, layer)
        both = torch.cat([a - a.mean(0), b - b.mean(0)])
        covariance = both.T @ both / len(both)
        covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        found: list[Tensor] = []
        for _ in range(RANK):
            difference = a.mean(0) - b.mean(0)
            found.append(torch.linalg.solve(covariance, difference))
            unit = found[-1] / found[-1].norm()
            a, b = (x - (x @ unit)[:, None] * unit for x in (a, b))
        return torch.stack(found)

    return _at_best(subject, rows)


@localizer("unembedding of refusals", "direction", "control")
def unembedding(subject: Subject) -> Directions:
    """Mean unembedding of the tokens that open refusals minus of those that open answers, after the last layer."""
    tokens = find_answer_tokens(
        subject.model, subject.seen.malicious, subject.seen.normal, detector=subject.measured.detector
    )
    matrix = _unembedding(subject.model)
    row = matrix[list(tokens.refuse)].mean(0) - matrix[list(tokens.comply)].mean(0)
    return directions_at(subject.states(), subject.shape.n_layers - 1, -1, row[None], "harmless")


@localizer("random direction", "direction", "control")
def random(subject: Subject) -> Directions:
    return _at_best(subject, lambda states, _: random_rows(states.values.shape[-1], sum(map(ord, subject.name))))


def random_rows(width: int, seed: int, n: int = RANK) -> Rows:
    """Directions that know nothing."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _at_best(subject: Subject, rows: Callable[[PromptStates, int], Rows]) -> Directions:
    states, layer = best_place(subject)
    return directions_at(states, layer, -1, rows(states, layer), "harmless")


def _apart(states: PromptStates, layer: int) -> tuple[Rows, Rows]:
    values = states.values[layer, -1].double()
    return values[: states.n_harmful], values[states.n_harmful :]


def _unembedding(model: HookedModel) -> Float[Tensor, "d_vocab d_model"]:
    matrix: Tensor = model.W_U
    return matrix.detach().double().T.cpu()
