"""What a model does: its completions, whether they refuse, how safe and how useful it is."""

from safecircuits.behavior.evaluate import Behavior, evaluate, exact_match
from safecircuits.behavior.generate import Completions, generate
from safecircuits.behavior.refusal import DETECTORS, PhraseDetector, RefusalDetector, get_detector, refused

__all__ = [
    "DETECTORS",
    "Behavior",
    "Completions",
    "PhraseDetector",
    "RefusalDetector",
    "evaluate",
    "exact_match",
    "generate",
    "get_detector",
    "refused",
]
