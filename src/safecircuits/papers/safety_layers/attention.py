"""What the last token attends to, layer by layer."""

from __future__ import annotations

from safecircuits.base.progress import say
from safecircuits.layers.attention import AttentionMap, attention_map
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Parts
from safecircuits.papers.safety_layers.localization import located
from safecircuits.papers.safety_layers.settings import SafetyLayers
from safecircuits.plots.attention import attention_panels
from safecircuits.report.sections import Exhibit


def _map(study: SafetyLayers, number: int) -> AttentionMap:
    question = study.asked.questions[number]
    say(f"attention: {question!r}")
    return attention_map(study.model, question, template=study.settings.attention_template)


def _section(study: SafetyLayers, made: StudyPage) -> None:
    if not study[MAPS]:
        return
    found = located(study)
    dashed = f"Dashed: the located block {found.layers}." if found.located else "No block was located."
    maps = list(study[MAPS].values())
    made.figures["attention"] = attention_panels(maps, safety_layers=found.layers if found.located else None)
    made.add(
        "attention",
        "What the last token attends to",
        "Attention of the last token to a question’s words, mean over heads, each layer from its least to its most. "
        "The paper reads three stages off such maps; nothing is measured here.",
        [Exhibit("attention", "Attention to the question by layer", dashed)],
    )


MAPS: Parts[SafetyLayers, int, AttentionMap] = Parts(
    lambda study: {number: f"attention_{number}" for number in range(study.n_questions)},
    AttentionMap,
    _map,
    section=_section,
)
