"""The four groups of units, by every cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from safecircuits.model.sites import HookedModel
from safecircuits.papers.page import StudyPage, groups_exhibit
from safecircuits.papers.part import Parts
from safecircuits.papers.ssah.settings import Cut, Ssah
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.units.answer_tokens import AnswerTokens, find_answer_tokens
from safecircuits.units.candidates import Candidate
from safecircuits.units.groups import GROUPS, UnitGroups, classify_units
from safecircuits.units.importance import score_units
from safecircuits.units.profiles import UnitProfiles
from safecircuits.units.profiling import scu_profiles
from safecircuits.units.score_methods import ATTRIBUTION_METHODS
from safecircuits.units.scores import UnitScores


def answers_of(study: Ssah) -> AnswerTokens | None:
    """What refuses and what answers, of the studied model; None where no cut asks for it."""
    p, s = study.asked, study.settings
    if p.normal is None or not any(cut.safest.method in ATTRIBUTION_METHODS for cut in s.cuts.values()):
        return None
    return find_answer_tokens(study.model, p.safety, p.normal, detector=s.detector, template=s.template)


def classify(
    study: Ssah,
    model: HookedModel,
    cut: Cut,
    sets: tuple[PromptSet, PromptSet] | None = None,
    *,
    knows_safety: bool = True,
) -> UnitGroups:
    """The groups of any model by a cut, on the study's prompts or on some of them."""
    p, s = study.asked, study.settings
    sets = sets or (p.safety, p.utility)
    safety, utility = (_scores(study, model, data, cut.score) for data in sets)
    if not knows_safety:
        return _without_safety(
            classify_units(safety, utility, scu=0.0, ucu=0.0, ru=s.ru, normalize=cut.score.normalize)
        )
    by = None if cut.scu_by is None else _scores(study, model, sets[0], cut.scu_by)
    return classify_units(safety, utility, scu=s.scu, ucu=s.ucu, ru=s.ru, scu_by=by, normalize=cut.score.normalize)


def _scores(study: Ssah, model: HookedModel, data: PromptSet, by: Candidate) -> UnitScores:
    more: dict[str, Any] = {}
    if by.method in ATTRIBUTION_METHODS:
        more = {"reference": study.asked.normal, "answers": study.answers}
    return score_units(model, data, method=by.method, tokens=by.tokens, template=study.settings.template, **more)


def _without_safety(groups: UnitGroups) -> UnitGroups:
    """A base model knows no safety: what is not redundant is utility-critical (Figure 6)."""
    rest, useful = GROUPS.index("CU"), GROUPS.index("UCU")
    labels = {site: torch.where(row == rest, useful, row).to(row.dtype) for site, row in groups.labels.items()}
    return replace(groups, labels=labels)


def _section(study: Ssah, made: StudyPage) -> None:
    exhibits = []
    for number, (name, groups) in enumerate(study[UNITS].items()):
        label = f"Units of each group by layer, {name}"
        exhibits.append(groups_exhibit(made, f"groups_{number}", label, f"By {name}: ", groups))
    made.add(
        "groups",
        "The four groups",
        "Each unit (MLP neuron or attention head) has a score on refusals (S) and one on ordinary answers (U). "
        "Safety-critical units (SCU) have the highest S − U, utility-critical ones (UCU) the lowest, redundant ones "
        "(RU) the lowest S + U; the rest are complex (CU). An attribution says what promotes refusal and nothing of "
        "what utility needs, so it cuts the SCU alone. Shares are the paper’s unless others were asked for.",
        exhibits,
    )


UNITS: Parts[Ssah, str, UnitGroups] = Parts(
    lambda study: study.by_cut("groups"),
    UnitGroups,
    lambda study, name: classify(study, study.model, study.settings.cuts[name]),
    says="groups by {0}",
    section=_section,
)


def _profiled(study: Ssah) -> dict[str, str]:
    """The cuts that have safety-critical units, and what their profiles are called."""
    return {name: key for name, key in study.by_cut("profiles").items() if study[UNITS][name]["SCU"]}


PROFILES: Parts[Ssah, str, UnitProfiles] = Parts(
    _profiled,
    UnitProfiles,
    lambda study, name: scu_profiles(
        study.model,
        study[UNITS][name],
        {"malicious": study.asked.malicious, "utility": study.asked.measured_utility},
        template=study.settings.template,
    ),
    says="what drives the SCU by {0}, and what they write",
    when=lambda study: bool(_profiled(study)),
    tables=lambda study: {key: study[PROFILES][name].to_frame() for name, key in _profiled(study).items()},
)
"""What the pages of the units show."""
