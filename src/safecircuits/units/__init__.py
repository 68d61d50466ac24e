"""The superficial safety alignment hypothesis (SSAH, ICLR 2026): neurons and heads that carry refusal."""

from safecircuits.units.ablation import (
    Ablation,
    AblationTable,
    ablate_groups,
    ablate_units,
    ablation_curve,
    measure_in,
    random_units,
)
from safecircuits.units.answer_tokens import AnswerTokens, find_answer_tokens
from safecircuits.units.comparison import Candidate, ScoreComparison, default_candidates, score_comparison
from safecircuits.units.coupled import CoupledScores, coupled_scores
from safecircuits.units.enrichment import Enrichment, MaskOverlap, enrichment, mask_overlap
from safecircuits.units.equal_budget import equal_budget_masks
from safecircuits.units.groups import GROUPS, NORMALISATIONS, UnitGroups, classify_units, set_difference
from safecircuits.units.importance import METHODS, Moments, UnitScores, score_units
from safecircuits.units.prune import PrunedModel, lowest_even, prune_units
from safecircuits.units.stability import Stability, calibration_subsets, compare_groups, stability
from safecircuits.units.sweep import ShareSweep, sweep_shares
from safecircuits.units.transfer import AttributeTransfer, Flow, attribute_transfer, transfer_of

__all__ = [
    "GROUPS",
    "METHODS",
    "NORMALISATIONS",
    "Ablation",
    "AblationTable",
    "AnswerTokens",
    "AttributeTransfer",
    "Candidate",
    "CoupledScores",
    "Enrichment",
    "Flow",
    "MaskOverlap",
    "Moments",
    "PrunedModel",
    "ScoreComparison",
    "ShareSweep",
    "Stability",
    "UnitGroups",
    "UnitScores",
    "ablate_groups",
    "ablate_units",
    "ablation_curve",
    "attribute_transfer",
    "calibration_subsets",
    "classify_units",
    "compare_groups",
    "coupled_scores",
    "default_candidates",
    "enrichment",
    "equal_budget_masks",
    "find_answer_tokens",
    "lowest_even",
    "mask_overlap",
    "measure_in",
    "prune_units",
    "random_units",
    "score_comparison",
    "score_units",
    "set_difference",
    "stability",
    "sweep_shares",
    "transfer_of",
]
