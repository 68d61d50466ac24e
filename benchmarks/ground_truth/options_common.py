"""What a line on an open option holds, and the model that its settings are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safecircuits as sc
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import HookedModel
from safecircuits.organism import prompts
from safecircuits.units.removals import Removals

COUNTS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
SHARES: dict[str, Any] = {"scu": 0.013, "ucu": 0.133, "ru": 0.148}
"""SSAH's for Llama-2-7b-chat."""
CALIBRATION = 128


@dataclass(frozen=True)
class Setting:
    """One value of an option and what came of it, by figure; of a model's figures the model's name comes first."""

    value: str
    default: bool
    figures: dict[str, float | None]


@dataclass(frozen=True)
class Line:
    """An option of ours, what the paper says about it, and its settings."""

    topic: str
    option: str
    argument: str
    paper: str
    settings: tuple[Setting, ...]


@dataclass
class Subject:
    """A model with its planted units, and removals that are measured once each."""

    name: str
    model: HookedModel
    planted: FreezeMask | None
    sets: dict[str, Any]

    def __post_init__(self) -> None:
        self.zeroing = Removals(self.model, **self.sets)

    def scores(self, **changes: Any) -> tuple[sc.UnitScores, sc.UnitScores]:
        """Safety and utility scores; ``utility``, ``n`` and ``seed`` choose the data, the rest is ``score_units``'."""
        n, seed, kind = changes.pop("n", CALIBRATION), changes.pop("seed", 0), changes.pop("utility", "utility")
        safety, utility = prompts("malicious", "train", n, seed), prompts(kind, "train", n, seed)
        return sc.score_units(self.model, safety, **changes), sc.score_units(self.model, utility, **changes)

    def order(self, groups: sc.UnitGroups, removals: Removals | None = None) -> dict[str, float | None]:
        """How many units of highest S − U must go until refusal is halved, and what is left of utility then."""
        counts = [count for count in COUNTS if count <= groups.n_units]
        found: dict[str, float | None] = halving(removals or self.zeroing, groups, counts)
        if self.planted:
            there = self.planted.n_units()
            found["planted found"] = (groups.top(min(there, groups.n_units)) & self.planted).n_units() / there
        return {f"{self.name}: {key}": value for key, value in found.items()}

    def cut(self, groups: sc.UnitGroups) -> dict[str, float | None]:
        """Neurons and heads of SCU, and what the model does without them."""
        units = groups["SCU"]
        rates = self.zeroing.without(units).rates
        names = {"mlp": "SCU neurons", "attn": "SCU heads"}
        found = {names[site]: float(units.n_units(site)) for site in groups.sites}
        found |= {"refused": rates["malicious_refused"], "utility": rates["utility"]}
        return {f"{self.name}: {key}": value for key, value in found.items()}


def halving(removals: Any, groups: Any, counts: Sequence[int] = COUNTS) -> dict[str, float | None]:
    """The first count whose removal leaves at most half of the refusals, with the utility left; None if none does."""
    enough = removals.intact.rates["malicious_refused"] / 2
    for count in counts:
        rates = removals.without(groups.top(count)).rates
        if rates["malicious_refused"] <= enough:
            return {"units": count, "utility": rates["utility"]}
    return {"units": None, "utility": None}
