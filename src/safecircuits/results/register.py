"""The classes that saved results are made of, by their names in files.

A file names its classes by these short names. Where a class lives is no business of a file: classes may move, the names
stay, and nothing is imported that is not in this table.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

HOMES: Mapping[str, tuple[str, ...]] = {
    "safecircuits.base.stats": ("Share",),
    "safecircuits.base.vocabulary": ("LayerRange",),
    "safecircuits.behavior.agreement_table": ("AgreementTable",),
    "safecircuits.behavior.change": ("BehaviorChange",),
    "safecircuits.behavior.divergence": ("TokenKL",),
    "safecircuits.behavior.depth": ("AlignmentDepth",),
    "safecircuits.behavior.measured": ("Behavior",),
    "safecircuits.behavior.field_judges": ("HarmVerdicts",),
    "safecircuits.behavior.completions": ("Completions",),
    "safecircuits.behavior.harm": ("Harmfulness",),
    "safecircuits.behavior.harness": ("TaskScore", "TaskScores"),
    "safecircuits.behavior.judge": ("JudgeVerdicts",),
    "safecircuits.behavior.attempts": ("Attempt", "Condition", "Pressure"),
    "safecircuits.behavior.reference": ("ResponseLoss", "RougeScores"),
    "safecircuits.behavior.robustness": ("JudgeRobustness",),
    "safecircuits.behavior.sampling": ("SampledRefusals",),
    "safecircuits.behavior.verdict_table": ("Tally", "Verdicts"),
    "safecircuits.demo.real.removal": ("Removed",),
    "safecircuits.demo.real.settings": ("RealDemoSettings",),
    "safecircuits.demo.real.study": ("RealDemoSubject",),
    "safecircuits.demo.settings": ("DemoSettings",),
    "safecircuits.demo.study": ("DemoSubject",),
    "safecircuits.direction.compare": ("DirectionComparison",),
    "safecircuits.direction.filters": ("DirectionFilters",),
    "safecircuits.direction.means": ("MeanDirections",),
    "safecircuits.direction.probed": ("DirectionProbe",),
    "safecircuits.direction.refusal": ("RefusalDirection",),
    "safecircuits.direction.shift": ("DirectionShift",),
    "safecircuits.direction.variants": ("Suffixes",),
    "safecircuits.direction.vector": ("Direction",),
    "safecircuits.gate.auditing": ("Audit",),
    "safecircuits.gate.checks": ("Check",),
    "safecircuits.direction.writers": ("DirectionWriters",),
    "safecircuits.hooks.collect": ("Residuals",),
    "safecircuits.layers.attention": ("AttentionMap",),
    "safecircuits.layers.by_category": ("CategoryGap",),
    "safecircuits.layers.comparison": ("GapComparison", "GapDifference"),
    "safecircuits.layers.sweep_point": ("SweepPoint",),
    "safecircuits.layers.decision": ("DecisionLayers", "DecisionRule"),
    "safecircuits.layers.grid": ("ScalingGrid",),
    "safecircuits.layers.interval": ("GapInterval",),
    "safecircuits.layers.localization": ("Localization", "Sweep"),
    "safecircuits.layers.malicious_check": ("MaliciousCheck",),
    "safecircuits.layers.onset": ("OnsetRule",),
    "safecircuits.layers.pairs": ("PairCurve",),
    "safecircuits.layers.similarity": ("LayerGap",),
    "safecircuits.layers.transplanting": ("Transplant", "TransplantTable"),
    "safecircuits.model.mixtures": ("MixtureShape",),
    "safecircuits.model.sites": ("ModelShape",),
    "safecircuits.papers.safety_layers.study": ("StudySubject",),
    "safecircuits.papers.ssah.removals": ("PrunedGroup",),
    "safecircuits.papers.ssah.safety_block": ("SafetyBlock",),
    "safecircuits.papers.ssah.settings": ("Cut",),
    "safecircuits.papers.ssah.study": ("SsahSubject",),
    "safecircuits.prompts.prompt_set": ("PromptSet",),
    "safecircuits.studies.attack.cells": ("AttackCell",),
    "safecircuits.studies.attack.outcome": ("AttackStudy",),
    "safecircuits.studies.budget": ("AlignmentBudget",),
    "safecircuits.studies.comparison": ("Comparison",),
    "safecircuits.studies.grid": ("FreezingGrid", "GridCell"),
    "safecircuits.studies.landscape": ("Landscape",),
    "safecircuits.studies.units_landscape": ("UnitsLandscape",),
    "safecircuits.studies.outcome": ("FinetuningStudy", "StudyRun"),
    "safecircuits.training.safety_filter": ("FilteredData",),
    "safecircuits.units.ablation": ("Ablation", "AblationTable"),
    "safecircuits.units.candidates": ("Candidate",),
    "safecircuits.units.comparison": ("CurvePoint", "ScoreComparison", "ScoreCurve"),
    "safecircuits.units.coupled": ("CoupledScores",),
    "safecircuits.units.edges": ("EdgeScores",),
    "safecircuits.units.overlap": ("BlockEnrichment", "Enrichment", "MaskOverlap"),
    "safecircuits.units.routing": ("ExpertRouting",),
    "safecircuits.units.groups": ("UnitGroups",),
    "safecircuits.units.head_kl": ("HeadGroup",),
    "safecircuits.units.interchange_curves": ("PatchingCurve", "PatchingCurves"),
    "safecircuits.units.moments": ("Comoments", "Moments"),
    "safecircuits.units.profiles": ("UnitProfiles",),
    "safecircuits.units.routed": ("RoutedMoments",),
    "safecircuits.units.stable_objects": ("ObjectStability",),
    "safecircuits.units.regions": ("RegionOverlap", "RegionStability"),
    "safecircuits.units.scores": ("UnitScores",),
    "safecircuits.units.resampling": ("Stability",),
    "safecircuits.units.sweep": ("ShareSweep", "SweptShare"),
    "safecircuits.units.three_objects": ("ObjectOverlap", "SetPair"),
    "safecircuits.units.transfer": ("AttributeTransfer",),
    "safecircuits.weights.probing": ("HeadProbe",),
    "safecircuits.weights.matrix_overlap": ("MatrixOverlap",),
    "safecircuits.weights.subspaces": ("OutputSpaces",),
    "safecircuits.weights.scores": ("WeightMask", "WeightScores"),
    "safecircuits.weights.sparsegpt": ("SparseWeights",),
}
"""The module of each class. A class of results, or of a field of one, is added here; its name is in files for good."""

MODULES: Mapping[str, str] = {name: module for module, names in HOMES.items() for name in names}


def registered_name(kind: type) -> str:
    """The name of ``kind`` in files.

    Raises:
        TypeError: if it is no class of a saved result, such as one of a user's own.
    """
    if MODULES.get(kind.__qualname__) != kind.__module__:
        raise TypeError(
            f"{kind.__module__}.{kind.__qualname__} is not among the classes of which saved results are made, so that "
            "nobody could load it; save what it holds as a table or as JSON"
        )
    return kind.__qualname__


def class_named(name: object) -> type:
    """The class that a file calls ``name``; it is imported if need be.

    Raises:
        ValueError: if no class of a saved result has this name.
    """
    if not isinstance(name, str) or name not in MODULES:
        raise ValueError(f"the result names {name!r}, which is not a result class of safecircuits")
    kind: type = getattr(importlib.import_module(MODULES[name]), name)
    return kind
