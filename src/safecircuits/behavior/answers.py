"""Answers that were judged as plain data, for files of an interrupted run; and answers that are right or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.behavior.completions import Completions
from safecircuits.behavior.verdict import unjudged
from safecircuits.behavior.verdict_table import Verdicts

Plain = dict[str, dict[str, Any]]


def plain(answers: Mapping[str, Verdicts]) -> Plain:
    """Verdicts by set as JSON holds them, from which ``of_plain`` makes the same again."""
    return {of: {**asdict(found), "scores": _finite(found.scores)} for of, found in answers.items()}


def of_plain(record: Plain) -> dict[str, Verdicts]:
    """What ``plain`` was given."""
    return {of: Verdicts(**{name: _read(name, value) for name, value in one.items()}) for of, one in record.items()}


def marked(completions: Completions, responses: Sequence[str], right: Bool[Tensor, " prompt"]) -> Verdicts:
    """Completions as ``right`` or ``wrong``, with the known response as the reason why one is wrong."""
    said = right.tolist()
    return replace(
        unjudged(completions),
        verdicts=tuple("right" if one else "wrong" for one in said),
        reasons=tuple("" if one else f"expected: {known}" for one, known in zip(said, responses, strict=True)),
        detector="exact match",
    )


def _finite(scores: Tensor) -> list[float | None]:
    return [None if score != score else score for score in scores.tolist()]


def _read(name: str, value: Any) -> Any:
    if name == "scores":
        return torch.tensor([float("nan") if score is None else score for score in value], dtype=torch.float64)
    return tuple(value) if isinstance(value, list) else value
