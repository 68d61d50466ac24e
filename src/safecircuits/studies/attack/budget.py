"""A budget in hours: two steps of every arm are timed, and as many attackers are taken, from the first, as fit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from safecircuits.studies.arms import Arm
from safecircuits.studies.attack.attackers import Attacker, DataAttack, DirectionAttack, PruningAttack
from safecircuits.studies.attack.workers import Workers

DIRECTION = 12
"""How many measurements finding a direction is worth, beside the one after it."""


def affordable(
    workers: Workers,
    arms: Sequence[Arm],
    attackers: Sequence[Attacker],
    seeds: Sequence[int],
    hours: float,
    possible: Collection[tuple[str, str]],
) -> tuple[int, float]:
    """How many attackers fit, and the hours that they are estimated to take against all arms with all seeds.

    Args:
        possible: names of arms and of attackers that can attack them.

    Raises:
        ValueError: for a budget in which not even the first one fits.
    """
    if not hours > 0:
        raise ValueError(f"hours must be above 0, not {hours}")
    place = workers.place
    trains = next((one for one in attackers if isinstance(one, DataAttack)), None)
    # Without adapters of its own, which not every arm takes.
    tried = None if trains is None else replace(trains, lora=None)
    with workers.as_one_of_them():
        measuring = max(place.before(arm, seeds[0])["seconds"] for arm in arms)
        per_step = {arm.name: place.step_seconds(arm, tried, seeds[0]) for arm in arms} if tried else {}
    counted: set[Path] = set()

    def cost(attacker: Attacker) -> float:
        """Seconds of an attacker against all arms and seeds, shared by the workers; arms alike to it share a cell."""
        seconds = 0.0
        for arm, seed in product(arms, seeds):
            if (arm.name, attacker.name) not in possible or (path := place.path(arm, attacker, seed)) in counted:
                continue
            counted.add(path)
            if isinstance(attacker, DataAttack):
                seconds += max(place.stops) * per_step[arm.name] + len(place.stops) * measuring
            else:
                seconds += (1 + _points(attacker)) * measuring
        return seconds / workers.n

    total = 0.0
    for n, attacker in enumerate(attackers):
        seconds = cost(attacker)
        if total + seconds > 3600 * hours:
            if n == 0:
                raise ValueError(
                    f"a budget of {hours:g} hours allows nothing: the first attacker, {attacker.name!r}, takes about "
                    f"{seconds / 3600:.2g} hours against {len(arms)} arms with {len(seeds)} seeds; take fewer arms, "
                    "seeds or stops, or more hours"
                )
            return n, total / 3600
        total += seconds
    return len(attackers), total / 3600


def _points(attacker: DirectionAttack | PruningAttack) -> int:
    """What an edit of the weights costs, in measurements."""
    if isinstance(attacker, DirectionAttack):
        return DIRECTION
    return 1 if attacker.knows_mask else len(attacker.shares)
