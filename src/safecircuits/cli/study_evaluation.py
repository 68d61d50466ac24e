"""How a study's rates are measured: as its options say, or as the embedded models and the planted ones need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safecircuits.cli.study_inputs import EMBEDDED
from safecircuits.cli.study_real import REAL, real_judging

if TYPE_CHECKING:
    from safecircuits.cli.frame import Run

EMBEDDED_TOKENS = 10
"""Every refusal and every answer to a harmful request of the embedded language has ended by then."""


def study_evaluation(run: Run, detector: str, max_new_tokens: int | None, template: Any) -> dict[str, Any]:
    """The options of ``evaluate``."""
    if run.source.startswith(REAL):
        judging = real_judging(run, detector, max_new_tokens or 16)
        return {
            "detector": judging["detector"],
            "refusal_tokens": judging["max_new_tokens"],
            "template": template,
            "grading": judging["grading"],
            "max_new_tokens": judging["utility_tokens"],
        }
    usual = EMBEDDED_TOKENS if run.source.startswith(EMBEDDED) else None
    tokens = usual if max_new_tokens is None else max_new_tokens
    return {"detector": detector, "refusal_tokens": tokens, "template": template}
