"""How a study's rates are measured: as its options say, or as the embedded models and the planted ones need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safecircuits.cli.study_inputs import EMBEDDED
from safecircuits.cli.study_real import REAL, real_judging

if TYPE_CHECKING:
    from safecircuits.behavior.judge import JudgeDetector
    from safecircuits.cli.frame import Run

EMBEDDED_TOKENS = 10
"""Every refusal and every answer to a harmful request of the embedded language has ended by then."""


def study_judging(run: Run, judge: JudgeDetector | None, detector: str, max_new_tokens: int) -> dict[str, Any]:
    """What says what refuses and of how many tokens, as ``Running`` takes it; a judge has as many as it needs."""
    from safecircuits.behavior.verdict import tokens_needed

    if judge is not None and "max_new_tokens" not in run.chosen:
        max_new_tokens = tokens_needed(judge)
    by: Any = detector if judge is None else judge
    if run.source.startswith(REAL):
        return real_judging(run, by, max_new_tokens)
    return {"detector": by, "max_new_tokens": max_new_tokens}


def study_evaluation(
    run: Run, judge: JudgeDetector | None, detector: str, max_new_tokens: int | None, template: Any
) -> dict[str, Any]:
    """The options of ``evaluate``."""
    if run.source.startswith(REAL):
        judging = study_judging(run, judge, detector, max_new_tokens or 16)
        return {
            "detector": judging["detector"],
            "refusal_tokens": judging["max_new_tokens"],
            "template": template,
            "grading": judging["grading"],
            "max_new_tokens": judging["utility_tokens"],
        }
    usual = EMBEDDED_TOKENS if run.source.startswith(EMBEDDED) else None
    tokens = usual if max_new_tokens is None else max_new_tokens
    return {"detector": detector if judge is None else judge, "refusal_tokens": tokens, "template": template}
