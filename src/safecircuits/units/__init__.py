"""The superficial safety alignment hypothesis (SSAH, ICLR 2026): neurons and heads that carry refusal."""

from safecircuits.units.ablation import (
    Ablation,
    AblationTable,
    ablate_groups,
    ablate_units,
    ablation_curve,
    random_units,
)
from safecircuits.units.groups import GROUPS, UnitGroups, classify_units
from safecircuits.units.importance import METHODS, Moments, UnitScores, score_units

__all__ = [
    "GROUPS",
    "METHODS",
    "Ablation",
    "AblationTable",
    "Moments",
    "UnitGroups",
    "UnitScores",
    "ablate_groups",
    "ablate_units",
    "ablation_curve",
    "classify_units",
    "random_units",
    "score_units",
]
