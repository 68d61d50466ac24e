"""What the models do before anything is removed or trained."""

from __future__ import annotations

from functools import partial

from safecircuits.behavior.evaluate import Behavior, EvaluationOptions, evaluate
from safecircuits.behavior.stakes import tell_if_nothing_to_lose
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
    if name == study.name:
        return evaluate(study.model, **sets)
    return s.on(study.others[name], partial(evaluate, **sets))


def _section(study: Ssah, made: StudyPage) -> None:
    made.add(
        "behavior",
        "What the models do",
        "Refusal of harmful prompts, over-rejection of harmless ones that sound dangerous, and known answers given "
        "exactly right, before anything is removed or trained.",
        [behavior_exhibit(made, "behavior", "Rates of each model", study[BEHAVIOR])],
    )


BEHAVIOR: Parts[Ssah, str, Behavior] = Parts(
    lambda study: {study.name: "behavior"} | {name: f"behavior_{name}" for name in study.others},
    Behavior,
    _measure,
    says="behaviour",
    then=lambda study: tell_if_nothing_to_lose(study[BEHAVIOR][study.name].rates, "the study"),
    section=_section,
)
