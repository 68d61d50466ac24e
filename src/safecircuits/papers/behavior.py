"""What both studies measure before anything is done to a model: what it does, and the others beside it."""

from __future__ import annotations

from functools import partial

from safecircuits.behavior.evaluate import EvaluationOptions, evaluate
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.stakes import tell_if_nothing_to_lose
from safecircuits.papers.part import Study


def kept_as(study: Study) -> dict[str, str]:
    """What the behaviour of each model is called in the run directory."""
    return {study.name: "behavior"} | {name: f"behavior_{name}" for name in study.others}


def measured(study: Study, name: str, sets: EvaluationOptions) -> Behavior:
    """The behaviour of the study's model, or of another one, which is loaded for it alone."""
    if name == study.name:
        return evaluate(study.model, **sets)
    return study.settings.on(study.others[name], partial(evaluate, **sets))


def tell_stakes(study: Study, found: dict[str, Behavior]) -> None:
    """A notice if the study's model has nothing to lose."""
    tell_if_nothing_to_lose(found[study.name].rates, "the study")
