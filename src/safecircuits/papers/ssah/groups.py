"""The groups of the SSAH study: cut in the studied model, cut again on other prompts, and in the models beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from safecircuits.base.progress import say
from safecircuits.model.each_model import release
from safecircuits.model.sites import HookedModel
from safecircuits.papers.ssah.parts import TUNED, Cut, SsahStudy
from safecircuits.papers.ssah.training import tuned_model
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.run import RunDirectory
from safecircuits.units.answer_tokens import AnswerTokens, find_answer_tokens
from safecircuits.units.comparison import Candidate
from safecircuits.units.groups import GROUPS, UnitGroups, classify_units
from safecircuits.units.importance import score_units
from safecircuits.units.resampling import Stability, calibration_subsets, compare_groups
from safecircuits.units.scores import ATTRIBUTION_METHODS, UnitScores
from safecircuits.units.transfer import AttributeTransfer, transfer_of


@dataclass(frozen=True)
class Classifier:
    """Cuts the units of any model into groups, on the study's prompts or on some of them."""

    study: SsahStudy
    answers: AnswerTokens | None

    @classmethod
    def of(cls, study: SsahStudy, model: HookedModel) -> Classifier:
        """What refuses and what answers is read off the studied model, for all models; not where no cut asks."""
        p, s = study.prompts, study.settings
        if p.normal is None or not any(cut.safest.method in ATTRIBUTION_METHODS for cut in s.cuts.values()):
            return cls(study, None)
        answers = find_answer_tokens(model, p.safety, p.normal, detector=s.detector, template=s.template)
        return cls(study, answers)

    def __call__(
        self,
        model: HookedModel,
        cut: Cut,
        sets: tuple[PromptSet, PromptSet] | None = None,
        *,
        knows_safety: bool = True,
    ) -> UnitGroups:
        p, s = self.study.prompts, self.study.settings
        sets = sets or (p.safety, p.utility)
        safety, utility = (self._scores(model, data, cut.score) for data in sets)
        if not knows_safety:
            return _without_safety(
                classify_units(safety, utility, scu=0.0, ucu=0.0, ru=s.ru, normalize=cut.score.normalize)
            )
        by = None if cut.scu_by is None else self._scores(model, sets[0], cut.scu_by)
        return classify_units(safety, utility, scu=s.scu, ucu=s.ucu, ru=s.ru, scu_by=by, normalize=cut.score.normalize)

    def _scores(self, model: HookedModel, data: PromptSet, by: Candidate) -> UnitScores:
        s = self.study.settings
        more: dict[str, Any] = {}
        if by.method in ATTRIBUTION_METHODS:
            more = {"reference": self.study.prompts.normal, "answers": self.answers}
        return score_units(model, data, method=by.method, tokens=by.tokens, template=s.template, **more)


def _without_safety(groups: UnitGroups) -> UnitGroups:
    """A base model knows no safety: what is not redundant is utility-critical (Figure 6)."""
    rest, useful = GROUPS.index("CU"), GROUPS.index("UCU")
    labels = {site: torch.where(row == rest, useful, row).to(row.dtype) for site, row in groups.labels.items()}
    return replace(groups, labels=labels)


def cut_groups(study: SsahStudy, run: RunDirectory, model: HookedModel, classify: Classifier) -> None:
    """The groups of the studied model, by every cut."""
    for number, (name, cut) in enumerate(study.settings.cuts.items()):
        say(f"groups by {name}")
        study.groups[name] = run.kept(f"groups_{number}", UnitGroups, partial(classify, model, cut))


def stability(study: SsahStudy, run: RunDirectory, model: HookedModel, classify: Classifier) -> None:
    """The groups on random halves of the prompts, and those of all cuts beside each other."""
    p, s = study.prompts, study.settings
    half = min(len(p.safety), len(p.utility)) // 2
    if half:
        subsets = calibration_subsets(p.safety, p.utility, n=half, draws=s.draws, seed=s.seeds[0])
        for number, (name, cut) in enumerate(s.cuts.items()):
            say(f"stability of the groups by {name}")

            def compare(cut: Cut = cut) -> Stability:
                return compare_groups({subset: classify(model, cut, sets) for subset, sets in subsets.items()})

            study.stability[name] = run.kept(f"stability_{number}", Stability, compare)
    if len(study.groups) > 1:
        study.agreement = run.kept("agreement", Stability, lambda: compare_groups(study.groups))


def transfers(study: SsahStudy, run: RunDirectory, classify: Classifier) -> None:
    """Figure 6 (alignment) and Figure 5 (fine-tuning), each by every cut."""
    s = study.settings
    made = {name: partial(s.load, other) for name, other in study.others.items()}
    if s.scenarios:
        made[TUNED] = partial(tuned_model, study)
    study.transfers = {name: {} for name in s.cuts}
    for kind, make in made.items():
        label = study.transfer_label(kind, s.scenarios[0].name if kind == TUNED else None)
        say(f"attribute transfer: {label}")
        _by_cut(study, run, classify, kind, label, _Once(make))
        release()


def _by_cut(study: SsahStudy, run: RunDirectory, classify: Classifier, kind: str, label: str, other: _Once) -> None:
    for number, name in enumerate(study.settings.cuts):
        cross = partial(_transfer, study, classify, other, kind, name)
        study.transfers[name][label] = run.kept(f"transfer_{number}_{kind}", AttributeTransfer, cross)


def _transfer(study: SsahStudy, classify: Classifier, other: _Once, kind: str, name: str) -> AttributeTransfer:
    own, cut = study.groups[name], study.settings.cuts[name]
    theirs = classify(other(), cut, knows_safety=kind != "base")
    return transfer_of(own, theirs) if kind == TUNED else transfer_of(theirs, own)


class _Once:
    """A model that is made when it is first asked for."""

    def __init__(self, make: Callable[[], HookedModel]) -> None:
        self.make = make
        self.model: HookedModel | None = None

    def __call__(self) -> HookedModel:
        if self.model is None:
            self.model = self.make()
        return self.model
