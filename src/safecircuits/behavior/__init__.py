"""What a model does: its completions, whether they refuse, how safe and how useful it is."""

from safecircuits.base.errors import JudgingError
from safecircuits.behavior.agreement import AgreementTable, agreement
from safecircuits.behavior.detectors import DETECTORS, PhraseDetector, RefusalDetector, get_detector
from safecircuits.behavior.evaluate import Behavior, evaluate, exact_match
from safecircuits.behavior.generate import Completions, generate
from safecircuits.behavior.harmfulness import Harmfulness, harmful_rate, harmfulness
from safecircuits.behavior.harness import TaskScores, run_tasks
from safecircuits.behavior.harness_model import harness_model
from safecircuits.behavior.judge import JudgeDetector, JudgeVerdicts
from safecircuits.behavior.pressure import Condition, Pressure, pressure
from safecircuits.behavior.reference import ResponseLoss, RougeScores, response_loss, rouge_l
from safecircuits.behavior.refusal import refused
from safecircuits.behavior.sampling import SampledRefusals, sample, sampled_refusals

__all__ = [
    "DETECTORS",
    "AgreementTable",
    "Behavior",
    "Completions",
    "Condition",
    "Harmfulness",
    "JudgeDetector",
    "JudgeVerdicts",
    "JudgingError",
    "PhraseDetector",
    "Pressure",
    "RefusalDetector",
    "ResponseLoss",
    "RougeScores",
    "SampledRefusals",
    "TaskScores",
    "agreement",
    "evaluate",
    "exact_match",
    "generate",
    "get_detector",
    "harmful_rate",
    "harmfulness",
    "harness_model",
    "pressure",
    "refused",
    "response_loss",
    "rouge_l",
    "run_tasks",
    "sample",
    "sampled_refusals",
]
