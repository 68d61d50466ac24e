"""An attack study in sentences, computed from its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from safecircuits.base.stats import rate_interval
from safecircuits.base.text import percent
from safecircuits.behavior.verdict_table import Verdicts
from safecircuits.studies.attack.attackers import Access
from safecircuits.studies.attack.costs import Cost, Measure, Ratio, over_seeds

ACCESSES: tuple[tuple[Access, str], ...] = (
    ("training", "by the defender's training"),
    ("weights", "with the weights in hand"),
)


SHOWN: tuple[Measure, Measure] = ("steps", "examples")


class Study(Protocol):
    """What is told of a study: that of ``AttackStudy``."""

    @property
    def arms(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def left_out(self) -> Sequence[Mapping[str, str]]: ...
    @property
    def stops(self) -> Sequence[int]: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    @property
    def seeds(self) -> Sequence[int]: ...
    @property
    def reference(self) -> str | None: ...
    @property
    def answers(self) -> Mapping[str, Verdicts]: ...
    def of(self, arm: str, seed: int, access: Access, /) -> Sequence[Any]: ...
    def worst_harm(self, arm: str, access: Access, /) -> list[float]: ...
    def costs(self, arm: str, measure: Measure, access: Access, /) -> list[Cost]: ...
    def against(self, arm: str, /) -> Ratio: ...
    def control_of(self, arm: str, /) -> str | None: ...
    def complied_before(self, arm: str, /) -> float: ...
    def needs_no_attacker(self, arm: str, /) -> bool: ...


def sentences(study: Study) -> list[str]:
    """One an arm, the one that defends nothing first, and one of what was left out."""
    first = study.reference
    arms = sorted(study.arms, key=lambda arm: arm != first)
    said = [about_arm(study, arm) for arm in arms]
    skipped = [f"{one['attacker']} ({one['arm']}): {one['why']}" for one in study.left_out]
    return said + ([f"Left out: {'; '.join(skipped)}."] if skipped else [])


def about_arm(study: Study, arm: str) -> str:
    """What breaking an arm takes and what is reached, by access, with the comparison with no defence."""
    parts = []
    for access, words in ACCESSES:
        if any(study.of(arm, seed, access) for seed in study.seeds):
            parts.append(f"{words} {reached(study, arm, access)}")
    verdict = ""
    if study.reference is not None and arm != study.reference:
        verdict = f" {_compared(study, arm)}"
    return f"{arm} ({study.arms[arm]['defence']}): {'; '.join(parts)}.{verdict}"


def _compared(study: Study, arm: str) -> str:
    """What the defence does to the steps to break, beside its control."""
    if study.needs_no_attacker(arm):
        return f"It needs no attacker: {percent(study.complied_before(arm))} are complied with before any attack."
    found, control = study.against(arm), study.control_of(arm)
    beside = "" if control == study.reference else f", compared with {control}"
    return f"Against its attackers the defence {VERDICTS[found.verdict]}{times(found)}{beside}."


VERDICTS = {
    "costs more": "raises the steps to break",
    "costs less": "lowers the steps to break",
    "no difference": "makes no difference to the steps to break",
    "unclear": "has no clear effect on the steps to break",
    "neither was broken": "cannot be told from none, as neither was broken",
}


def reached(study: Study, arm: str, access: Access) -> str:
    """``it breaks after 4 [3, 6] steps … in 3 of 3 seeds, and worst harm is …``."""
    costs = study.costs(arm, "steps", access)
    broken = sum(math.isfinite(one.value) for one in costs)
    harms = torch.tensor(study.worst_harm(arm, access), dtype=torch.float64)
    mean, low, high = rate_interval(harms, trials=study.provenance["reported"]["n"])
    spread = "" if math.isnan(low) else f" [{100 * low:.0f}, {100 * high:.0f}]"
    worst = f"the worst harm is {percent(mean)}{spread}"
    if access == "training" and arm in study.answers:
        worst += f" (at the worst point of any seed {study.answers[arm]})"
    if not broken:
        return f"it does not break within {max(study.stops)} steps in any of {len(costs)} seeds, and {worst}"
    steps, examples = (cost_text(over_seeds(study.costs(arm, of, access))) for of in SHOWN)
    seeds = f"{broken} of {len(costs)} seeds"
    return f"it breaks in {seeds}, after {steps} steps or with {examples} harmful examples, and {worst}"


def cost_text(found: tuple[float, float, float]) -> str:
    """``4.2 [3, 6]``, or ``more than 2`` where a seed was not broken."""
    mean, low, high = found
    if math.isinf(mean):
        return f"{low:.3g} or more (not broken in every seed)"
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def times(found: Ratio) -> str:
    """`` (2 times [1.4, 2.9] those without)``; empty where there is no ratio."""
    if math.isnan(found.mean):
        return "" if math.isinf(found.low) or found.low <= 0 else f" ({found.low:.2g} times or more)"
    return f" ({found.mean:.2g} times [{found.low:.2g}, {found.high:.2g}], of one plus the steps)"
