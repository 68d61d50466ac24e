"""The whole of *Safety Layers* (ICLR 2025) on one model: each of its experiments, with the statistics it never had.

Every part is kept in the run directory as soon as it is there, so that an interrupted study goes on with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.localization import Localization
from safecircuits.model.sites import ModelShape
from safecircuits.papers.part import Shown, Subject
from safecircuits.papers.safety_layers.attention import MAPS
from safecircuits.papers.safety_layers.behavior import BEHAVIOR, DETECTORS
from safecircuits.papers.safety_layers.checks import CHECK, TOO_FAR
from safecircuits.papers.safety_layers.gap import GAPS
from safecircuits.papers.safety_layers.localization import DECISION, SEARCHES, located
from safecircuits.papers.safety_layers.published import add_published
from safecircuits.papers.safety_layers.settings import SafetyLayers, StudyPrompts, StudySettings
from safecircuits.papers.safety_layers.training import FINETUNING
from safecircuits.papers.safety_layers.transplant import TRANSPLANT
from safecircuits.prompts.leaks import Overlap, tell_overlaps
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.run import RunDirectory
from safecircuits.studies.hyperparameters import settings_for
from safecircuits.studies.subject import plain_name


class SafetyLayersStudy(SafetyLayers):
    """The study of one model with all its parts, in the order in which they run; those left out are None or empty."""

    behavior = BEHAVIOR
    detectors = DETECTORS
    gaps = GAPS
    searches = SEARCHES
    decision = DECISION
    check = CHECK
    too_far = TOO_FAR
    attention = MAPS
    transplant = TRANSPLANT
    finetuning = FINETUNING
    published = Shown[SafetyLayers](section=add_published)

    @property
    def located(self) -> Localization:
        """The paper's own localization."""
        return located(self)

    @property
    def block(self) -> LayerRange:
        """The located safety layers."""
        return located(self).layers


@dataclass(frozen=True)
class StudySubject(Subject):
    """The model of a study."""

    source: str
    shape: ModelShape
    planted: LayerRange | None
    """The block in which refusal is known to be, for models that were made so."""

    def empty(self, results: Path) -> SafetyLayersStudy:
        """The study of what is in ``results``, of which nothing has been read yet."""
        others = {"base": "base"} if (results / "behavior_base").is_dir() else {}
        return SafetyLayersStudy(
            source=self.source,
            name=plain_name(self.source, others),
            shape=self.shape,
            others=others,
            planted=self.planted,
            n_questions=sum(1 for _ in results.glob("attention_*")),
        )

    def study(self, folder: Path) -> SafetyLayersStudy:
        return self.empty(folder / "results").again(folder)


def safety_layers_study(
    source: str,
    prompts: StudyPrompts,
    run: RunDirectory,
    *,
    settings: StudySettings | None = None,
    base: str | None = None,
    planted: LayerRange | None = None,
) -> SafetyLayersStudy:
    """Run every part on the model that ``source`` names, keeping results in ``run``.

    Args:
        source: a hub id, a folder or an embedded stage.
        base: the model before alignment, if there is one: for the gap it should not have, and for the transplant.
        planted: where refusal is known to be.

    Raises:
        ValueError: for prompts without the responses that they need, an α that does not scale up, a planted block that
            the model does not have, a preset that does not have the model, and as the parts do.

    Examples:
        >>> asked = sc.papers.StudyPrompts(normal, malicious, over_rejection)
        >>> with sc.RunDirectory.open("study", "safety layers", {}) as run:  # doctest: +SKIP
        ...     study = sc.papers.safety_layers_study("google/gemma-2b-it", asked, run)
    """
    s = settings or StudySettings()
    check_inputs(source, prompts, s)
    for shared in shared_prompts(prompts):
        run.say(f"found and judged on the same: {shared.counted}")
    model = s.load(source)
    shape = ModelShape.of(model)
    if planted is not None:
        LayerRange.of(planted, shape.n_layers)  # refuses layers that the model does not have
    run.kept("subject", StudySubject, lambda: StudySubject(source, shape, planted))
    others = {} if base is None else {"base": base}
    study = SafetyLayersStudy(
        source=source,
        name=plain_name(source, others),
        shape=shape,
        settings=s,
        others=others,
        prompts=prompts,
        planted=planted,
        n_questions=len(prompts.questions),
        _model=model,
    )
    del model  # the study lets go of it before anything is trained
    return study.go(run)


def shared_prompts(prompts: StudyPrompts) -> list[Overlap]:
    """What layers are found on that arms and transplants are judged on, too, each with a notice."""
    found_on: dict[str, PromptSet | None] = {
        "the malicious prompts of the gap": prompts.malicious,
        "the over-rejection prompts that layers are located on": prompts.over_rejection,
        "the refused prompts that NFFT and Lisa take": prompts.refused,
    }
    return tell_overlaps(found_on, {"evaluation": prompts.measured, "utility": prompts.utility})


def check_inputs(source: str, prompts: StudyPrompts, settings: StudySettings) -> None:
    """A ValueError for what would fail, or be called by the wrong name, an hour into the study."""
    for data in (prompts.utility, prompts.refused):
        if data is not None:
            data.require_responses()
    for scenario in settings.scenarios:
        settings_for(settings.training, source, scenario)  # refuses a preset that does not have this model
    alpha = settings.alpha
    if alpha != "search" and (isinstance(alpha, str) or not 1 < alpha < float("inf")):
        raise ValueError(
            f"alpha is 'search' or a number above 1 (the search downwards takes its inverse), not {alpha!r}"
        )
