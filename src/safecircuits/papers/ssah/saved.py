"""An SSAH study again from its run directory, as far as its report needs it."""

from __future__ import annotations

from pathlib import Path

from safecircuits.behavior.conditions import Pressure
from safecircuits.behavior.evaluate import Behavior
from safecircuits.direction.compare import DirectionComparison
from safecircuits.papers.kept import Kept, R
from safecircuits.papers.ssah.parts import (
    CONDITIONS,
    REMOVED,
    TUNED,
    PrunedGroup,
    SafetyBlock,
    SsahResults,
    SsahSettings,
    SsahSubject,
)
from safecircuits.studies.budget import AlignmentBudget
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.subject import plain_name
from safecircuits.units.ablation import AblationTable
from safecircuits.units.comparison import ScoreComparison
from safecircuits.units.groups import UnitGroups
from safecircuits.units.overlap import Enrichment, MaskOverlap
from safecircuits.units.resampling import Stability
from safecircuits.units.scores import UnitScores
from safecircuits.units.transfer import AttributeTransfer


def saved_study(folder: str | Path) -> SsahResults:
    """The study that a complete run directory holds. Settings that its report does not say are left at the defaults.

    Raises:
        ValueError: if a part that every study has is missing, or one cannot be read.
    """
    kept = Kept(folder)
    subject = kept.must("subject", SsahSubject)
    study = SsahResults(
        subject.source,
        plain_name(subject.source, subject.others),
        subject.shape,
        _settings(subject),
        dict(subject.others),
    )
    study.behavior[study.name] = kept.must("behavior", Behavior)
    study.behavior |= {name: kept.must(f"behavior_{name}", Behavior) for name in study.others}
    study.probes = {
        reading: kept.must(f"probe_{number}", DirectionComparison) for number, reading in enumerate(subject.readings)
    }
    study.scores = kept.maybe("scores", ScoreComparison)
    study.unit_parameters = kept.must("means", UnitScores).unit_parameters
    for number, name in enumerate(subject.cuts):
        study.groups[name] = kept.must(f"groups_{number}", UnitGroups)
        study.removals[name] = kept.those(f"removals_{number}_", CONDITIONS, AblationTable)
        if pruned := kept.those(f"pruned_{number}_", REMOVED, PrunedGroup):
            study.pruned[name] = pruned
    for number, name in enumerate(study.pressed):
        if pressed := kept.maybe(f"pressure_{number}", Pressure):
            study.pressures[name] = pressed
    study.stability = _by_cut(kept, "stability", subject, Stability)
    study.agreement = kept.maybe("agreement", Stability)
    block = kept.maybe("block", SafetyBlock)
    study.block = None if block is None or len(block.layers) == study.shape.n_layers else block
    study.enrichments = _by_cut(kept, "enrichment", subject, Enrichment)
    study.overlaps = _by_cut(kept, "overlap", subject, MaskOverlap)
    study.finetuning = kept.maybe("finetuning", FinetuningStudy)
    study.budget = kept.maybe("budget", AlignmentBudget)
    study.equal = kept.maybe("equal", FinetuningStudy)
    _transfers(study, kept)
    return study


def _settings(subject: SsahSubject) -> SsahSettings:
    return SsahSettings(
        seeds=subject.seeds,
        cuts=subject.cuts,
        scu=subject.scu,
        ucu=subject.ucu,
        ru=subject.ru,
        suffixes=subject.suffixes,
        system=subject.system,
        prefill=subject.prefill,
    )


def _transfers(study: SsahResults, kept: Kept) -> None:
    scenario = None if study.finetuning is None else study.finetuning.scenarios[0]
    for number, name in enumerate(study.groups):
        found = kept.those(f"transfer_{number}_", (*study.others, TUNED), AttributeTransfer)
        study.transfers[name] = {
            study.transfer_label(kind, scenario if kind == TUNED else None): one for kind, one in found.items()
        }


def _by_cut(kept: Kept, part: str, subject: SsahSubject, kind: type[R]) -> dict[str, R]:
    """The parts of all cuts, which are saved by number; those that are there."""
    found = kept.those(f"{part}_", map(str, range(len(subject.cuts))), kind)
    return {name: found[str(number)] for number, name in enumerate(subject.cuts) if str(number) in found}
