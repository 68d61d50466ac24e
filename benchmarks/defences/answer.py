"""The table that the page about defences opens with: by model and defence, whether an attacker's cost is raised."""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmarks.defences.run import SLOW
from benchmarks.markdown import markdown_table
from safecircuits.base.text import percent
from safecircuits.studies.attack.attackers import Access
from safecircuits.studies.attack.costs import over_seeds
from safecircuits.studies.attack.outcome import AttackStudy
from safecircuits.studies.attack.words import cost_text

KINDS = {
    "the aligned model": ("aligned", "more", "slow", "slow-more"),
    "the model planted in layers 3 to 5": ("planted-layers", "slow-planted"),
    "a real model, planted": ("real", "slow-real"),
}
"""Studies by the kind of model they are of; the slow ones are attackers who are held to a low rate."""
ANSWERS = {
    "costs more": "**raises**",
    "costs less": "does not (cheaper)",
    "no difference": "does not",
    "unclear": "inconclusive",
    "neither was broken": "inconclusive (none broken)",
}
HEAD = ("model", "defence", "steps, any rate", "cost", "steps, low rate", "cost", "weights in hand")


def answer_table(studies: Mapping[str, AttackStudy]) -> str:
    """One row a kind of model and defence."""
    rows = []
    for kind, names in KINDS.items():
        there = [name for name in names if name in studies]
        if not there:
            rows.append([kind, "all", "not measured", "–", "not measured", "–", "–"])
        fast = [studies[name] for name in there if not name.startswith("slow")]
        slow = {arm: studies[name] for name in reversed(there) if name.startswith("slow") for arm in studies[name].arms}
        for study in fast:
            for arm in study.arms:
                if arm == study.reference and study is not fast[0]:
                    continue
                held = cells(slow[arm], arm) if arm in slow else ["not measured", "–"]
                named = "none" if arm == study.reference else arm
                if study.control_of(arm) not in (study.reference, None):
                    named += f" (against {study.control_of(arm)})"
                rows.append([kind, named, *cells(study, arm), *held, verdict(study, arm, "weights")])
    return markdown_table(HEAD, rows)


def cells(study: AttackStudy, arm: str) -> list[str]:
    """The steps to break it by the defender's training, and whether that is more than without a defence.

    Adapters learn at rates of their own. Where no attacker chose one, that adapters held out says nothing of a defence.
    """
    if not chooses_rate(study, arm):
        return ["no attacker at a rate for adapters", "–"]
    return [cost_text(over_seeds(study.costs(arm))), verdict(study, arm)]


def chooses_rate(study: AttackStudy, arm: str) -> bool:
    """False for an arm of adapters in a study where attackers may choose a rate, but none of those for adapters."""
    rates = {cell.attacker.rpartition("lr ")[2] for cell in study.cells if "lr " in cell.attacker}
    held = rates == {f"{SLOW:g}"}
    adapters = study.arms[arm]["method"].get("name") == "lora"
    return not adapters or held or any("LoRA" in cell.attacker for cell in study.cells)


def verdict(study: AttackStudy, arm: str, access: Access = "training") -> str:
    """``**raises** (×1.5 [1.5, 1.5])``; a dash for what defends nothing."""
    if arm == study.reference:
        return "–"
    if study.needs_no_attacker(arm):
        return f"complies before any attack ({percent(study.complied_before(arm))})"
    found = study.against(arm, "steps", access)
    times = f" (×{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}])"
    if math.isnan(found.mean):
        times = f" (×{found.low:.3g} or more)" if math.isfinite(found.low) else ""
    return f"{ANSWERS[found.verdict]}{times}"
