"""The whole of *SSAH* (ICLR 2026) on one model: each of its experiments, with the controls that it lacks.

Every part is kept in the run directory as soon as it is there, so that an interrupted study goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safecircuits.base.vocabulary import LayerRange
from safecircuits.baselines.lora import Lora
from safecircuits.direction.variants import Suffixes
from safecircuits.model.sites import ModelShape
from safecircuits.papers.part import Shown, Subject, by_first
from safecircuits.papers.ssah.behavior import BEHAVIOR
from safecircuits.papers.ssah.budget import BUDGET
from safecircuits.papers.ssah.depth import DEPTH
from safecircuits.papers.ssah.direction import PROBES
from safecircuits.papers.ssah.equal import EQUAL
from safecircuits.papers.ssah.freezing import FINETUNING
from safecircuits.papers.ssah.groups import PROFILES, UNITS, answers_of
from safecircuits.papers.ssah.published import add_published
from safecircuits.papers.ssah.removals import MEANS, PRUNED, REMOVALS, PrunedGroup, removed
from safecircuits.papers.ssah.safety_block import BLOCK, ENRICHMENTS, OVERLAPS
from safecircuits.papers.ssah.scores import SCORES
from safecircuits.papers.ssah.settings import Cut, Ssah, SsahPrompts, SsahSettings
from safecircuits.papers.ssah.stability import AGREEMENT, STABILITY
from safecircuits.papers.ssah.transfer import TRANSFERS, transfers
from safecircuits.papers.ssah.under_pressure import PRESSURES
from safecircuits.prompts.leaks import Overlap, tell_overlaps
from safecircuits.results.run import RunDirectory
from safecircuits.studies.subject import plain_name
from safecircuits.units.ablation import AblationTable
from safecircuits.units.score_methods import ATTRIBUTION_METHODS
from safecircuits.units.transfer import AttributeTransfer


class SsahStudy(Ssah):
    """The study of one model with all its parts, in the order in which they run; those left out are None or empty.

    What is a mapping is by cut; ``removed``, ``cut_out`` and ``transferred`` are by cut, and then by what was done.
    """

    behavior = BEHAVIOR
    probes = PROBES
    scores = SCORES
    groups = UNITS
    profiles = PROFILES
    means = MEANS
    removals = REMOVALS
    pruned = PRUNED
    pressures = PRESSURES
    depth = DEPTH
    stability = STABILITY
    agreement = AGREEMENT
    block = BLOCK  # with the model, as everything above; what is below trains, or needs no model
    finetuning = FINETUNING
    transfers = TRANSFERS
    budget = BUDGET
    overlaps = OVERLAPS
    enrichments = ENRICHMENTS
    equal = EQUAL
    published = Shown[Ssah](section=add_published)

    @property
    def removed(self) -> dict[str, dict[str, AblationTable]]:
        return removed(self)

    @property
    def cut_out(self) -> dict[str, dict[str, PrunedGroup]]:
        return by_first(self[PRUNED])

    @property
    def transferred(self) -> dict[str, dict[str, AttributeTransfer]]:
        return transfers(self)


@dataclass(frozen=True)
class SsahSubject(Subject):
    """The model of a study, and those of the settings that its report is about."""

    source: str
    shape: ModelShape
    others: Mapping[str, str]
    seeds: tuple[int, ...]
    cuts: Mapping[str, Cut]
    scu: float
    ucu: float
    ru: float
    suffixes: Suffixes
    readings: tuple[str, ...]
    system: str | None
    prefill: str | None

    def study(self, folder: Path) -> SsahStudy:
        """The settings that the page does not say are left at the defaults."""
        settings = SsahSettings(
            seeds=self.seeds,
            cuts=self.cuts,
            scu=self.scu,
            ucu=self.ucu,
            ru=self.ru,
            suffixes=self.suffixes,
            readings={name: {} for name in self.readings},
            system=self.system,
            prefill=self.prefill,
        )
        study = SsahStudy(
            source=self.source,
            name=plain_name(self.source, self.others),
            shape=self.shape,
            settings=settings,
            others=self.others,
        )
        return study.again(folder)


def ssah_study(
    source: str,
    prompts: SsahPrompts,
    run: RunDirectory,
    *,
    settings: SsahSettings | None = None,
    base: str | None = None,
    unaligned: str | None = None,
    lora: Lora | None = None,
) -> SsahStudy:
    """Run every part on the model that ``source`` names, keeping results in ``run``.

    Args:
        source: a hub id, a folder or an embedded stage.
        base: the pretrained model, for the probe, for what alignment did to its units, and for the alignment budget.
        unaligned: a sibling that follows instructions and was never taught to refuse; for the probe and the transfer.
        lora: the method of the LoRA arm; its defaults unless given.

    Raises:
        ValueError: for a cut that needs normal prompts where there are none, and as the parts do.

    Examples:
        >>> asked = sc.papers.SsahPrompts(safety=malicious, utility=utility, malicious=malicious, normal=normal)
        >>> with sc.RunDirectory.open("study", "ssah", {}) as run:  # doctest: +SKIP
        ...     study = sc.papers.ssah_study("google/gemma-2b-it", asked, run)
    """
    s = settings or SsahSettings()
    check_inputs(prompts, s)
    for shared in shared_prompts(prompts):
        run.say(f"found and judged on the same: {shared.counted}")
    others = {name: other for name, other in (("unaligned", unaligned), ("base", base)) if other is not None}
    model = s.load(source)
    study = SsahStudy(
        source=source,
        name=plain_name(source, others),
        shape=ModelShape.of(model),
        settings=s,
        others=others,
        prompts=prompts,
        lora=lora,
        _model=model,
    )
    del model  # the study lets go of it before anything is trained
    for given in (s.layers, s.freeze_layers):
        if given is not None:
            LayerRange.of(given, study.shape.n_layers)  # refuses layers that the model does not have
    study.answers = answers_of(study)
    run.kept("subject", SsahSubject, lambda: _subject(study))
    return study.go(run)


def _subject(study: Ssah) -> SsahSubject:
    s = study.settings
    return SsahSubject(
        source=study.source,
        shape=study.shape,
        others=dict(study.others),
        seeds=tuple(s.seeds),
        cuts=dict(s.cuts),
        **s.shares,
        suffixes=s.suffixes,
        readings=tuple(s.readings),
        system=s.system,
        prefill=s.prefill,
    )


def shared_prompts(prompts: SsahPrompts) -> list[Overlap]:
    """What units are scored on that removals are measured on, too, each with a notice."""
    found_on = {"the safety data that units are scored on": prompts.safety, "the utility data": prompts.utility}
    judged_on = {"malicious": prompts.malicious, "over_rejection": prompts.over_rejection}
    return tell_overlaps(found_on, judged_on | {"utility": prompts.measured_utility})


def check_inputs(prompts: SsahPrompts, settings: SsahSettings) -> None:
    """A ValueError for what would fail an hour into the study: prompts, shares and scores that do not go together."""
    for data in (prompts.safety, prompts.utility, prompts.known, prompts.answered, prompts.answered_held_out):
        if data is not None:
            data.require_responses()
    for name, share in settings.shares.items() | {("budget_share", settings.budget_share)}:
        if not 0 < share < 1:
            raise ValueError(f"{name} is a share of all units between 0 and 1, not {share}")
    if sum(settings.shares.values()) > 1:
        raise ValueError(
            f"the shares of SCU, UCU and RU add up to {sum(settings.shares.values()):g}, more than all units"
        )
    for name, cut in settings.cuts.items():
        if cut.safest.method in ATTRIBUTION_METHODS and prompts.normal is None:
            raise ValueError(f"score {name!r} compares with normal prompts: give them, or leave this score out")
