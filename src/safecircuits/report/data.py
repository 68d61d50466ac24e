"""Figures take result objects or the plain data of ``results.json``; here the former become the latter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from safecircuits.behavior.evaluate import Behavior
    from safecircuits.layers.localization import Localization
    from safecircuits.layers.onset import Onset
    from safecircuits.layers.similarity import LayerGap
    from safecircuits.sites import LayerRange
    from safecircuits.units.ablation import AblationTable
    from safecircuits.units.groups import UnitGroups

Record: TypeAlias = Mapping[str, Any]
"""Plain data as in ``results.json``: numbers, strings, lists and further records by name."""

Block: TypeAlias = "Onset | LayerRange | Sequence[int]"
"""A block of layers, 0-indexed and inclusive."""

RATES = ("malicious_refused", "over_rejected", "normal_refused", "utility", "new_task")


def gap_degrees(gap: LayerGap | Record | Sequence[float]) -> list[float]:
    """Angle gap of each layer, degrees."""
    if isinstance(gap, Mapping):
        return [float(g) for g in gap["gap_deg"]]
    values: Any = getattr(gap, "gap_deg", gap)
    return [float(g) for g in values]


def pair_statistics(gap: LayerGap | Record) -> dict[str, list[float]]:
    """``nn_mean``, ``nn_std``, ``mm_mean`` … of each layer, those that are there."""
    if isinstance(gap, Mapping):
        keys = [f"{kind}_{what}" for kind in ("nn", "mm", "nm") for what in ("mean", "std")]
        return {key: [float(v) for v in gap[key]] for key in keys if key in gap}
    return {
        f"{kind}_{what}": [float(v) for v in getattr(getattr(gap, kind), what)]
        for kind in ("nn", "mm", "nm")
        for what in ("mean", "std")
    }


def bounds(block: Block | None) -> tuple[int, int] | None:
    """First and last layer of a block, whichever way it is given."""
    if block is None:
        return None
    pair: Any = getattr(block, "layers", block)
    first, last = pair
    return int(first), int(last)


def sweeps(localization: Localization | Record) -> Record:
    """The counts of a localization, as in ``results.json``."""
    if isinstance(localization, Mapping):
        return localization
    rows = localization.to_frame().to_dict("records")
    return {
        "alpha": localization.alpha,
        "direction": localization.direction,
        "baseline_refused": localization.baseline.count,
        "n_prompts": len(localization.baseline.refused),
        "layers": list(localization.layers),
        "upper": [row for row in rows if row["bound"] == "upper"],
        "lower": [row for row in rows if row["bound"] == "lower"],
        "within_noise": localization.within_noise,
        "verdict": localization.verdict,
        "alpha_found": localization.alpha_found,
    }


def rates(behavior: Behavior | Record) -> Record:
    """Rates by name, each with ``<name>_interval`` where it is known."""
    if isinstance(behavior, Mapping):
        return behavior
    shares = behavior.shares
    named: dict[str, Any] = {name: share.rate for name, share in shares.items()}
    return named | {f"{name}_interval": list(share.interval) for name, share in shares.items()}


def ablations(table: AblationTable | Record) -> tuple[dict[str, Record], dict[str, Record]]:
    """What is left without each group, and without as many random units (means over draws); by group."""
    if isinstance(table, Mapping):
        return {name: row for name, row in table.items() if isinstance(row, Mapping)}, {}
    groups: dict[str, Record] = {"nothing": {"units": 0, **rates(table.intact)}}
    controls: dict[str, Record] = {}
    for row in table.rows:
        groups[row.name] = {"units": row.n_units, **rates(row.behavior)}
        if row.random_controls:
            draws = [control.rates for control in row.random_controls]
            controls[row.name] = {
                "units": row.n_units,
                "draws": len(draws),
                **{name: sum(draw[name] for draw in draws) / len(draws) for name in draws[0]},
                **{f"{name}_draws": [draw[name] for draw in draws] for name in draws[0]},
            }
    return groups, controls


def curve(points: Mapping[int, Behavior] | Sequence[Record]) -> list[Record]:
    """Points of an ablation curve by ascending number of removed units."""
    if isinstance(points, Mapping):
        rows: list[Record] = [{"removed": removed, **rates(behavior)} for removed, behavior in points.items()]
    else:
        rows = list(points)
    return sorted(rows, key=lambda row: int(row["removed"]))


def unit_counts(groups: UnitGroups | Record) -> dict[str, dict[str, list[int]]]:
    """Units of each group in each layer: site → group → one count a layer."""
    if isinstance(groups, Mapping):
        return {site: {g: [int(c) for c in row] for g, row in by_group.items()} for site, by_group in groups.items()}
    frame = groups.to_frame()
    names = [column for column in frame.columns if column not in ("site", "layer")]
    return {
        str(site): {str(name): [int(count) for count in rows[name]] for name in names}
        for site, rows in frame.groupby("site", sort=False)
    }


def arms(finetune: Record) -> dict[str, Record]:
    """The arms of a fine-tuning comparison: every record in it that has a refusal rate, but for ``before``."""
    return {
        name: row
        for name, row in finetune.items()
        if name != "before" and isinstance(row, Mapping) and number(row.get("malicious_refused")) is not None
    }


def number(value: Any) -> float | None:
    """``value`` as a finite float, or None if it is missing, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def interval(row: Record, name: str) -> tuple[float, float] | None:
    """``<name>_interval`` of a record, if it is there and finite."""
    pair = row.get(f"{name}_interval")
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return None
    low, high = number(pair[0]), number(pair[1])
    return None if low is None or high is None else (low, high)
