"""Scores from the results file: overlap with the planted block, exact hits and errors of the bounds, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from safecircuits.base.vocabulary import LayerRange

N_LAYERS = 8
DRAWS = 10_000
OURS = "decision layers"
METHODS = (
    OURS,
    "gap onset",
    "bounds up, all",
    "bounds down, all",
    "bounds up, qkv+mlp",
    "bounds down, qkv+mlp",
    "grid up, all",
    "grid down, all",
    "grid up, qkv+mlp",
    "grid down, qkv+mlp",
)
DIAGNOSES = ("bounds up from the planted block", "bounds down from the planted block")
GUESSES = ("always the same block", "any block, evenly")


@dataclass(frozen=True)
class Score:
    """One method over members; intervals are 95 % bootstrap intervals over members."""

    method: str
    n: int
    overlap: float
    overlap_interval: tuple[float, float]
    exact: int
    nothing: int
    """Members on which the method named no layers; their overlap is 0, and they have no errors of bounds."""
    first_error: float
    """Mean of found minus planted, in layers; NaN if nothing was found on any member."""
    last_error: float
    behind: tuple[float, float, float]
    """Overlap of the decision layers minus this method's on the same members: mean and interval."""


def members(results: dict[str, Any], role: str | None) -> dict[str, dict[str, Any]]:
    """Members of a role (None: all) in which something is planted."""
    return {
        name: member
        for name, member in results["members"].items()
        if member["learned"] and role in (None, member["role"])
    }


def measured(results: dict[str, Any]) -> list[str]:
    """Methods and diagnoses that every planted member has been through."""
    planted = members(results, None).values()
    return [method for method in (*METHODS, *DIAGNOSES) if all(method in member["methods"] for member in planted)]


def overlap(found: list[int] | None, block: list[int]) -> float:
    """Intersection over union in layers; 0 where nothing was found."""
    return 0.0 if found is None else LayerRange.of(found).overlap(LayerRange.of(block))


def blocks(n_layers: int = N_LAYERS) -> list[list[int]]:
    """Every block of a model's layers."""
    return [[first, last] for first in range(n_layers) for last in range(first, n_layers)]


def constant_guess(results: dict[str, Any]) -> list[int]:
    """The block with the largest mean overlap with the development members': what one can know without a method."""
    return best_constant([member["block"] for member in members(results, "development").values()], blocks())


def best_constant(known: list[list[int]], among: list[list[int]]) -> list[int]:
    """The block of ``among`` with the largest mean overlap with the known ones, the first of several."""
    return max(among, key=lambda block: sum(overlap(block, one) for one in known))


def scores(results: dict[str, Any], role: str | None = "judged") -> list[Score]:
    """Every method's score over the members of a role, and that of two guesses that look at no model."""
    judged = list(members(results, role).values())
    if not judged:
        return []
    ours = np.array([overlap(member["methods"][OURS]["layers"], member["block"]) for member in judged])
    found = {method: [member["methods"][method]["layers"] for member in judged] for method in measured(results)}
    rows = []
    for method, layers in found.items():
        each = [overlap(one, member["block"]) for one, member in zip(layers, judged, strict=True)]
        rows.append(_score(method, np.array(each), ours, layers, [member["block"] for member in judged]))
    same = [constant_guess(results) for _ in judged]
    each = [overlap(one, member["block"]) for one, member in zip(same, judged, strict=True)]
    rows.append(_score(GUESSES[0], np.array(each), ours, same, [member["block"] for member in judged]))
    evenly = [np.mean([overlap(block, member["block"]) for block in blocks()]) for member in judged]
    rows.append(_score(GUESSES[1], np.array(evenly), ours, [None] * len(judged), [m["block"] for m in judged]))
    return rows


def _score(
    method: str, overlaps: np.ndarray, ours: np.ndarray, found: list[list[int] | None], planted: list[list[int]]
) -> Score:
    hits = [(one, block) for one, block in zip(found, planted, strict=True) if one is not None]
    errors = np.array([[one[0] - block[0], one[1] - block[1]] for one, block in hits], dtype=float).reshape(-1, 2)
    first, last = errors.mean(0) if len(errors) else (float("nan"), float("nan"))
    return Score(
        method=method,
        n=len(overlaps),
        overlap=float(overlaps.mean()),
        overlap_interval=bootstrap(overlaps),
        exact=sum(one == block for one, block in hits),
        nothing=len(found) - len(hits),
        first_error=float(first),
        last_error=float(last),
        behind=(float((ours - overlaps).mean()), *bootstrap(ours - overlaps)),
    )


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean: members are resampled."""
    picks = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def single_layers(results: dict[str, Any], method: str) -> dict[str, list[int]]:
    """How scaling one layer alone moves the count, by where the layer lies: below, in or above the planted block.

    Each value is the list of differences to the unscaled count, over planted members and layers.
    """
    moved: dict[str, list[int]] = {"below": [], "inside": [], "above": []}
    for member in members(results, None).values():
        grid, (first, last) = member["methods"][method], member["block"]
        for layer in range(N_LAYERS):
            place = "below" if layer < first else "above" if layer > last else "inside"
            moved[place].append(grid["counts"][layer][layer] - grid["baseline"])
    return moved


def table(results: dict[str, Any], role: str | None = "judged") -> str:
    """The scores as a Markdown table."""
    lines = [
        "| method | overlap | exact | none found | error of first | error of last | decision layers ahead by |",
        "|---|---|---|---|---|---|---|",
    ]
    for score in scores(results, role):
        low, high = score.overlap_interval
        cells = [score.method, f"{score.overlap:.2f} [{low:.2f}, {high:.2f}]"]
        if score.method == GUESSES[1]:
            cells += ["", "", "", ""]
        else:
            cells += [f"{score.exact} of {score.n}", str(score.nothing)]
            cells += [f"{score.first_error:+.1f}", f"{score.last_error:+.1f}"]
        mean, low, high = score.behind
        cells.append("" if score.method == OURS else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
