"""What the models do before anything is removed or trained."""

from __future__ import annotations

from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.behavior.measured import Behavior
from safecircuits.papers.behavior import kept_as, measured, tell_stakes
from safecircuits.papers.page import StudyPage, behavior_exhibit
from safecircuits.papers.part import Parts
from safecircuits.papers.ssah.settings import Ssah


def _measure(study: Ssah, name: str) -> Behavior:
    p, s = study.asked, study.settings
    sets: EvaluationOptions = {
        "malicious": p.malicious,
        "over_rejection": p.over_rejection,
        "utility": p.measured_utility,
        **s.judging,
    }
    return measured(study, name, sets)


def _section(study: Ssah, made: StudyPage) -> None:
    made.add(
        "behavior",
        "What the models do",
        "Refusal of harmful prompts, over-rejection of harmless ones that sound dangerous, and known answers given "
        "exactly right, before anything is removed or trained.",
        [behavior_exhibit(made, "behavior", "Rates of each model", study[BEHAVIOR])],
    )


BEHAVIOR: Parts[Ssah, str, Behavior] = Parts(
    kept_as,
    Behavior,
    _measure,
    says="behaviour",
    then=lambda study: tell_stakes(study, study[BEHAVIOR]),
    section=_section,
)
