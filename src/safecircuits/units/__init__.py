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
from safecircuits.units.enrichment import (
    Enrichment,
    MaskOverlap,
    enrichment,
    mask_overlap,
)
from safecircuits.units.equal_budget import equal_budget_masks
from safecircuits.units.groups import GROUPS, NORMALISATIONS, UnitGroups, classify_units, set_difference
from safecircuits.units.head_probe import HeadProbe, head_probe
from safecircuits.units.importance import METHODS, Moments, UnitScores, score_units
from safecircuits.units.matrix_overlap import MatrixOverlap, space_overlap, weight_overlap
from safecircuits.units.output_spaces import (
    OutputSpaces,
    output_spaces,
    without_directions,
    without_directions_in_turn,
)
from safecircuits.units.prune import PrunedModel, lowest_even, prune_units
from safecircuits.units.sparse_gpt import SparseWeights, sparse_gpt, with_sparse_weights
from safecircuits.units.stability import Stability, calibration_subsets, compare_groups, stability
from safecircuits.units.sweep import ShareSweep, sweep_shares
from safecircuits.units.transfer import AttributeTransfer, Flow, attribute_transfer, transfer_of
from safecircuits.units.weight_choice import choose_weights, random_weights
from safecircuits.units.weight_scores import (
    WeightMask,
    WeightScores,
    score_weights,
    weight_set_difference,
    without_weights,
)

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
    "HeadProbe",
    "MaskOverlap",
    "MatrixOverlap",
    "Moments",
    "OutputSpaces",
    "PrunedModel",
    "ScoreComparison",
    "ShareSweep",
    "SparseWeights",
    "Stability",
    "UnitGroups",
    "UnitScores",
    "WeightMask",
    "WeightScores",
    "ablate_groups",
    "ablate_units",
    "ablation_curve",
    "attribute_transfer",
    "calibration_subsets",
    "choose_weights",
    "classify_units",
    "compare_groups",
    "coupled_scores",
    "default_candidates",
    "enrichment",
    "equal_budget_masks",
    "find_answer_tokens",
    "head_probe",
    "lowest_even",
    "mask_overlap",
    "measure_in",
    "output_spaces",
    "prune_units",
    "random_units",
    "random_weights",
    "score_comparison",
    "score_units",
    "score_weights",
    "set_difference",
    "space_overlap",
    "sparse_gpt",
    "stability",
    "sweep_shares",
    "transfer_of",
    "weight_overlap",
    "weight_set_difference",
    "with_sparse_weights",
    "without_directions",
    "without_directions_in_turn",
    "without_weights",
]
