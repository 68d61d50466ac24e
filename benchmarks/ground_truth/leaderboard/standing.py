"""Numbers of the leaderboard from its results: means over members with intervals, chance, and the constant guess."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.ground_truth.leaderboard.registry import LOCALIZERS, Localizer, Object, localizers
from benchmarks.ground_truth.scoring import best_constant, blocks, bootstrap, overlap
from safecircuits.base.vocabulary import LayerRange

Interval = tuple[float, float, float]
"""A mean over members and its 95 % bootstrap interval."""

KINDS: dict[str, str] = {"units": "planted units", "layers": "planted layers"}


@dataclass(frozen=True)
class Standing:
    """One localizer over the members of a role."""

    localizer: Localizer
    n: int
    overlap: dict[str, Interval]
    """By kind of member for units, else under ``""``; members on which nothing was found count as 0."""
    nothing: int
    smallest: float | None
    """Median of the members on which refusal was removed within the bounds."""
    removes: int
    judged: int
    """On how many members what is left without it was measured; on all, those count on which nothing was found."""
    above: Interval
    forward: float
    backward: float
    seconds: float


def members(results: dict[str, Any], role: str, kind: str = "") -> list[dict[str, Any]]:
    """Those of a role, and of a kind where one is given."""
    return [m for m in results["members"].values() if m["role"] == role and kind in ("", m["kind"])]


def standings(results: dict[str, Any], object: Object, role: str) -> list[Standing]:
    """Localizers that were run on every member of the role, the largest overlap first."""
    there = members(results, role)
    localizers()  # registers them
    done = [one for one in LOCALIZERS.values() if one.object == object and there]
    done = [one for one in done if all("overlap" in m["cells"].get(one.name, {}) for m in there)]
    return sorted((_standing(one, there) for one in done), key=_rank, reverse=True)


def not_run(results: dict[str, Any], object: Object, role: str) -> list[tuple[Localizer, str]]:
    """Localizers that were not run on every member of the role, and why; ``started`` with no reason is one to come."""
    there = members(results, role)
    found = []
    for one in localizers():
        cells = [m["cells"].get(one.name, {}) for m in there]
        if one.object == object and there and not all("overlap" in cell for cell in cells):
            found.append((one, next((cell["not run"] for cell in cells if "not run" in cell), "not yet")))
    return found


def _rank(one: Standing) -> tuple[bool, float]:
    return one.localizer.source != "control", float(np.mean([mean for mean, _, _ in one.overlap.values()]))


def _standing(one: Localizer, there: list[dict[str, Any]]) -> Standing:
    cells = [m["cells"][one.name] for m in there]
    kinds = [kind for kind in KINDS if any(m["kind"] == kind for m in there)] if one.object == "units" else [""]
    by_kind = {k: [c["overlap"] for m, c in zip(there, cells, strict=True) if k in ("", m["kind"])] for k in kinds}
    sizes = [c["smallest"] for c in cells if c.get("smallest") is not None]
    measured = [c["above"] for c in cells if "above" in c]
    above = [value for value in measured if value is not None]
    return Standing(
        one,
        len(cells),
        {kind: interval(values) for kind, values in by_kind.items()},
        sum(c.get("above", 0.0) is None for c in cells),
        float(median(sizes)) if sizes else None,
        len(sizes),
        len(measured) if len(measured) == len(cells) else len(above),
        interval(above),
        *(float(np.mean([c[what] for c in cells])) for what in ("forward", "backward", "seconds")),
    )


def interval(values: list[float]) -> Interval:
    """NaN of nothing; of one member no interval."""
    if not values:
        return (float("nan"),) * 3
    mean = float(np.mean(values))
    return (mean, *bootstrap(np.array(values))) if len(values) > 1 else (mean, float("nan"), float("nan"))


# --- what knows nothing, and what has only seen other members -----------------------------------


def chances(results: dict[str, Any], object: Object, role: str) -> dict[str, float]:
    """What a localizer that knows nothing overlaps with on average, by kind as in ``Standing.overlap``."""
    found: dict[str, float] = {}
    for kind in KINDS if object == "units" else ("",):
        cells = [
            c
            for m in members(results, role, kind)
            for name, c in m["cells"].items()
            if "chance" in c and LOCALIZERS[name].object == object and LOCALIZERS[name].source == "control"
        ]
        if cells:
            found[kind] = float(np.mean([c["chance"] for c in cells]))
    return found


def constants(results: dict[str, Any], object: Object, role: str) -> dict[str, Interval] | None:
    """The constant guess of least regret on the development members; None where there are fewer than two.

    Of blocks the one with the largest mean overlap; of units any units of its layers; of directions the mean of those
    that were planted, after the last layer.
    """
    known, there = members(results, "development"), members(results, role)
    if len(known) < 2 or not there:
        return None
    if object == "direction":
        mean = np.mean([m["planted_direction"] for m in known], axis=0)
        unit = mean / np.linalg.norm(mean)
        return {"": interval([abs(float(unit @ np.array(m["planted_direction"]))) for m in there])}
    block = constant_block(results)
    if object == "block":
        return {"": interval([overlap(block, m["block"]) for m in there])}
    return {
        kind: interval([_planted_in(m, block) for m in some])
        for kind in KINDS
        if (some := members(results, role, kind))
    }


def constant_block(results: dict[str, Any]) -> list[int]:
    """The block with the largest mean overlap on the development members."""
    known = members(results, "development")
    return best_constant([m["block"] for m in known], blocks(known[0]["n_layers"]))


def _planted_in(member: dict[str, Any], block: list[int]) -> float:
    """The share of a block's units that is planted."""
    inside = LayerRange.of(block).indices
    shares = member["planted_units"]
    if shares is None:
        own = LayerRange.of(member["block"]).indices
        return len(set(inside) & set(own)) / len(inside)
    return float(np.mean([shares[layer] for layer in inside]))


# --- three objects ------------------------------------------------------------------------------


def pairs_of(results: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Of each pair of objects what each member has."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, member in results["members"].items():
        for pair in member.get("objects", []):  # not where only overlap was asked for
            found.setdefault((pair["a"], pair["b"]), []).append(pair | {"member": name})
    return found
