"""What a budget of hours counts, what is told of utility, and which badge an arm has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safecircuits import organism
from safecircuits.base.notices import Notice
from safecircuits.baselines import Lora, Vaccine
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.organism.grammar import examples
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies import DataAttack, Preparation, PruningAttack, attack_study
from safecircuits.studies.arms import full, sppft
from safecircuits.studies.attack.budget import affordable
from safecircuits.studies.attack.cells import Probes, Range
from safecircuits.studies.attack.study import badge_of
from safecircuits.studies.attack.workers import Workers
from safecircuits.studies.ssah import lora_arm
from safecircuits.studies.subject import Subject
from safecircuits.training.settings import TrainingSettings

MALICIOUS = organism.prompts("malicious", "test", n=6, seed=1)
SELECTION, REPORTED = MALICIOUS[:3], MALICIOUS[3:]
UTILITY = organism.prompts("utility", "test", n=3)
ROWS = list(examples("malicious", "train"))[:8]
HARMFUL = PromptSet("harmful", tuple(e.prompt for e in ROWS), tuple(e.complied for e in ROWS))
SETTINGS = TrainingSettings(batch_size=4, schedule="constant")
EDITED = {"harmful_prompts": HARMFUL, "harmless_prompts": UTILITY}


def test_a_budget_counts_what_arms_share_once_and_what_cannot_attack_not_at_all(tmp_path: Path) -> None:
    """An edit has nothing to do with how an arm would have trained: three arms and two seeds are one search."""
    arms, seeds = [full(), sppft((3, 4)), lora_arm()], (0, 1)
    blind, knows = (PruningAttack(**EDITED, knows_mask=known) for known in (False, True))
    place = Range(Subject("aligned"), tmp_path, Probes(SELECTION, REPORTED, UTILITY), (2,), SETTINGS)
    seconds = place.before(arms[0], 0)["seconds"]
    possible = {(arm.name, blind.name) for arm in arms} | {("sppft", knows.name)}
    n, hours = affordable(Workers(1, place), arms, [blind, knows], seeds, 1.0, possible)
    assert n == 2
    assert hours * 3600 == pytest.approx(seconds * (1 + len(blind.shares) + 2))


def test_a_model_that_has_no_utility_to_lose_is_told() -> None:
    wrong = PromptSet("wrong", UTILITY.prompts, ("no such answer",) * len(UTILITY))
    with pytest.warns(Notice, match=r"gets none of the utility prompts right \(arm full\)"):
        attack_study(
            "aligned",
            [full()],
            [DataAttack(name="8 harmful", family="harmful data", rows=HARMFUL, harmful=8, lr=1e-4)],
            selection=SELECTION,
            reported=REPORTED,
            utility=wrong,
            seeds=(0,),
            stops=(1,),
            settings=SETTINGS,
            progress=False,
        )


def test_badges_are_of_what_defends() -> None:
    def aligned(**more: Any) -> dict[str, Any]:
        settings = TrainingSettings(steps=1)
        return Preparation(unaligned="unaligned", data=HARMFUL, settings=settings, **more).record(0)

    assert badge_of("plain", None, masked=False)["badge"] == ""
    assert badge_of("plain", aligned(), masked=False)["badge"] == ""
    assert "SPPFT" in badge_of("plain", None, masked=True)["paper"]
    assert "SafeNeuron" in badge_of("plain", aligned(mask=FreezeMask.layers((3, 4))), masked=False)["paper"]
    assert badge_of("plain", aligned(method=Vaccine()), masked=False)["paper"] == Vaccine.paper
    assert badge_of("lora", aligned(method=Vaccine()), masked=False)["paper"] == Lora.paper
