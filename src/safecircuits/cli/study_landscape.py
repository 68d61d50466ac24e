"""``safecircuits study landscape``: how far weights may move before a model stops refusing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.found_on import say_overlaps_of_masks
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.options import (
    DetectorOption,
    MaybeMalicious,
    MaybeUtility,
    TemplateOption,
    TokensOrNeededOption,
)
from safecircuits.cli.study_evaluation import study_evaluation
from safecircuits.cli.study_inputs import require, study_prompts
from safecircuits.cli.study_mask import study_mask

if TYPE_CHECKING:
    from collections.abc import Callable

    from safecircuits.prompts.prompt_set import PromptSet


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app, "landscape")(landscape)


def landscape(
    run: Run,
    judges: JudgeOptions,
    malicious: MaybeMalicious = None,
    utility: MaybeUtility = None,
    mask: Annotated[
        str | None, typer.Option("--mask", help="The units in question; the planted ones or SCU unless given.")
    ] = None,
    freeze_layers: Annotated[
        str | None, typer.Option("--freeze-layers", help="FIRST,LAST: the units of these layers instead.")
    ] = None,
    at: Annotated[
        str, typer.Option("--at", help="Distances, in norms of the weights' rows; 0 is measured in any case.")
    ] = "-1,-0.6,-0.4,-0.2,0.2,0.4,0.6,1",
    draws: Annotated[int, typer.Option("--draws", help="Directions, and random units, a pair each.", min=1)] = 3,
    least: Annotated[float, typer.Option("--least", help="Share refused down to which the basin goes.")] = 0.5,
    visage: Annotated[
        int,
        typer.Option("--visage", help="Random directions of all weights for VISAGE, 21 points each.", min=0),
    ] = 1,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """The safety landscape: how far some units may move at random before refusals end, compared with random units.

    Both move equally far. Utility is measured too, since a broken model refuses nothing either. VISAGE is the mean
    safety left when all weights move. The weights are restored bit for bit. A point costs one safecircuits evaluate.

    Example: safecircuits study landscape --model organism:planted-layers --out runs/landscape
    """
    from safecircuits.base.counted import at_most
    from safecircuits.studies.units_landscape import landscape_study

    distances = _distances(at)
    require(run, malicious=malicious)
    asked = study_prompts(run, "malicious", malicious, own="evaluation")
    known = study_prompts(run, "utility", utility, responses=True)
    units, words = study_mask(run, mask, freeze_layers, "a landscape of units needs")
    judge = judges.made(run)
    evaluation = study_evaluation(run, judge, detector, max_new_tokens, template)
    folder = judges.begin(run, judge)
    say_overlaps_of_masks(run, {"malicious": asked, "utility": known})
    found = landscape_study(
        run.model(),
        units,
        _rates(asked, known, evaluation),
        at=distances,
        least=least,
        draws=draws,
        seed=run.seed,
        visage_of="complied" if visage else None,
        visage_directions=max(1, visage),
        progress=True,
    )
    folder.result("landscape", found)
    folder.table("basins", found.basins(), main=True)
    folder.tables("points", found)
    folder.figure("landscape", found.plot(axis((4.2, 3.1))), of=found)
    run.say(f"units: {words}")
    run.say(str(found))
    run.say(f"of the answers at all points, {at_most(found.points, 'refused')}")
    run.answer(**found.record())


def _rates(asked: PromptSet, known: PromptSet | None, evaluation: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """Refused and complied shares with what stands beside them, by category too; utility where there are questions."""
    from safecircuits.behavior.evaluate import evaluate

    def measure(model: Any) -> dict[str, Any]:
        behavior = evaluate(model, malicious=asked, utility=known, **evaluation)
        tally = behavior.answers["malicious"].tally
        shares = {"complied": tally.share("complies").rate, **tally.record("")}
        kinds = {"by_category": behavior.by_category} if behavior.by_category else {}
        return {**behavior.rates, **shares, **kinds}

    return measure


def _distances(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"--at holds distances, as in -0.5,0.5, not {text!r}")
    return found
