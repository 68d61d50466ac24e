"""Single weights and the directions of a matrix: Wei et al. 2024, SparseGPT, and head probes."""

from safecircuits.weights.choice import choose_weights, random_weights
from safecircuits.weights.head_probe import HeadProbe, head_probe
from safecircuits.weights.matrix_overlap import MatrixOverlap, space_overlap, weight_overlap
from safecircuits.weights.output_spaces import (
    OutputSpaces,
    output_spaces,
    without_directions,
    without_directions_layerwise,
)
from safecircuits.weights.scores import WeightMask, WeightScores, score_weights, weight_set_difference, without_weights
from safecircuits.weights.sparse_gpt import SparseWeights, sparse_gpt, with_sparse_weights

__all__ = [
    "HeadProbe",
    "MatrixOverlap",
    "OutputSpaces",
    "SparseWeights",
    "WeightMask",
    "WeightScores",
    "choose_weights",
    "head_probe",
    "output_spaces",
    "random_weights",
    "score_weights",
    "space_overlap",
    "sparse_gpt",
    "weight_overlap",
    "weight_set_difference",
    "with_sparse_weights",
    "without_directions",
    "without_directions_layerwise",
    "without_weights",
]
