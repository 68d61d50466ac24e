"""A Safety Layers study again from its run directory."""

from __future__ import annotations

from pathlib import Path

from safecircuits.behavior.agreement_table import AgreementTable
from safecircuits.behavior.evaluate import Behavior
from safecircuits.layers.attention import AttentionMap
from safecircuits.layers.comparison import GapComparison
from safecircuits.layers.decision import DecisionLayers
from safecircuits.layers.localization import Localization
from safecircuits.layers.malicious_check import MaliciousCheck
from safecircuits.layers.transplanting import TransplantTable
from safecircuits.papers.kept import Kept
from safecircuits.papers.safety_layers.parts import SEARCHES, SafetyLayersStudy
from safecircuits.papers.safety_layers.study import StudySubject
from safecircuits.studies.outcome import FinetuningStudy


def saved_study(folder: str | Path) -> SafetyLayersStudy:
    """The study that a complete run directory holds.

    Raises:
        ValueError: if a part that every study has is missing, or one cannot be read.
    """
    kept = Kept(folder)
    base = kept.maybe("behavior_base", Behavior)
    study = kept.must("subject", StudySubject).study(beside_base=base is not None)
    study.behavior[study.name] = kept.must("behavior", Behavior)
    if base is not None:
        study.behavior["base"] = base
    study.detectors = kept.must("detectors", AgreementTable)
    study.gaps = kept.must("gaps", GapComparison)
    study.searches = {name: kept.must(f"localization_{i}", Localization) for i, name in enumerate(SEARCHES)}
    study.decision = kept.must("decision", DecisionLayers)
    study.check = kept.must("malicious_check", MaliciousCheck)
    study.too_far = kept.must("too_far", MaliciousCheck)
    n_maps = sum(1 for _ in kept.folder.glob("attention_*"))
    study.attention = [kept.must(f"attention_{i}", AttentionMap) for i in range(n_maps)]
    study.transplant = kept.maybe("transplant", TransplantTable)
    study.finetuning = kept.maybe("finetuning", FinetuningStudy)
    return study
