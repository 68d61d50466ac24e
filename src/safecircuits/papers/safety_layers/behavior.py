"""What the model refuses, and how far that depends on what counts as a refusal."""

from __future__ import annotations

from safecircuits.base.counted import HEADING, Beside
from safecircuits.base.text import percent
from safecircuits.behavior.agreement_table import AgreementTable, agreement
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.behavior.generate import generate
from safecircuits.behavior.measured import Behavior
from safecircuits.papers.behavior import kept_as, measured, tell_stakes
from safecircuits.papers.page import StudyPage, behavior_exhibit
from safecircuits.papers.part import Part, Parts
from safecircuits.papers.safety_layers.settings import SafetyLayers
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table


def _measure(study: SafetyLayers, name: str) -> Behavior:
    p, s = study.asked, study.settings
    sets: EvaluationOptions = {
        "malicious": p.measured,
        "over_rejection": p.over_rejection,
        "utility": p.utility,
        **s.judging,
    }
    return measured(study, name, sets)


def _judge(study: SafetyLayers) -> AgreementTable:
    p, s = study.asked, study.settings
    # Some detectors look for phrases anywhere: they get a whole sentence to look at.
    return agreement(generate(study.model, p.over_rejection, max_new_tokens=2 * s.max_new_tokens, template=s.template))


def _section(study: SafetyLayers, made: StudyPage) -> None:
    shares = study[DETECTORS].shares
    tallies = dict(zip(study[DETECTORS].detectors, study[DETECTORS].tallies, strict=False))
    rows = [
        [name, str(share.hits), str(share), Beside.of(tallies[name].record("") if tallies else {}, "refused").cell]
        for name, share in shares.items()
    ]
    least, most = (pick(shares.values(), key=lambda share: share.rate) for pick in (min, max))
    made.add(
        "behavior",
        "What the model refuses",
        "The paper does not say how it tells a refusal. The same completions of the over-rejection prompts are judged "
        "by every detector here, since the published counts depend on it.",
        [
            behavior_exhibit(made, "behavior", "Refusal, over-rejection and utility", study[BEHAVIOR]),
            Exhibit(
                None,
                "What each detector counts",
                f"Between {percent(least.rate)} and {percent(most.rate)} of the same answers, by detector.",
                [
                    Table(
                        "Over-rejection prompts refused, by detector",
                        ["detector", "refused", "share [95 %]", HEADING],
                        rows,
                    )
                ],
            ),
        ],
    )


BEHAVIOR: Parts[SafetyLayers, str, Behavior] = Parts(
    kept_as,
    Behavior,
    _measure,
    says="behaviour and what the detectors make of it",
    then=lambda study: tell_stakes(study, study[BEHAVIOR]),
)
DETECTORS: Part[SafetyLayers, AgreementTable] = Part("detectors", AgreementTable, _judge, section=_section)
