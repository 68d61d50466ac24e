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
    from safecircuits.studies.landscape import WeightDirection


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
    along: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            help="Also a slice of all weights: random, MODEL for the way to it (a fine-tuned one is at 1), or "
            "FROM,TO for theirs, as of safety minus utility; given twice, a slice of two directions.",
        ),
    ] = None,
    slice_at: Annotated[
        str, typer.Option("--slice-at", help="Distances along it; of two directions every pair.")
    ] = "-0.5,0,0.5,1",
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """The safety landscape: how far some units may move at random before refusals end, compared with random units.

    Both move equally far. Utility is measured too, since a broken model refuses nothing either. VISAGE is the mean
    safety left when all weights move. The weights are restored bit for bit. A point costs one safecircuits evaluate;
    with the defaults there are about 70.

    Example: safecircuits study landscape --model organism:planted-layers --out runs/landscape
    """
    from safecircuits.base.counted import at_most
    from safecircuits.model.as_it_was import AsItWas
    from safecircuits.studies.landscape import slices
    from safecircuits.studies.units_landscape import landscape_study

    distances = _distances(at)
    between = [_ends(text) for text in along or ()]
    if len(between) > 2:
        raise ValueError(f"a slice has one direction or two: --slice was given {len(between)} times")
    far = sorted({0.0, *_distances(slice_at, "--slice-at")})
    require(run, malicious=malicious)
    asked = study_prompts(run, "malicious", malicious, own="evaluation")
    known = study_prompts(run, "utility", utility, responses=True)
    units, words = study_mask(run, mask, freeze_layers, "a landscape of units needs")
    judge = judges.made(run)
    evaluation = study_evaluation(run, judge, detector, max_new_tokens, template)
    folder = judges.begin(run, judge, run.source, *dict.fromkeys(name for ends in between for name in ends))
    say_overlaps_of_masks(run, {"malicious": asked, "utility": known})
    model = run.model()
    evaluation["unchanged"] = AsItWas(model, folder.work("unchanged"))
    measure = _rates(asked, known, evaluation)
    directions = [_direction(run, model, ends) for ends in between]
    found = landscape_study(
        model,
        units,
        measure,
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
    if directions:
        cut = slices(model, directions, measure, at=far, progress=True)
        folder.result("slice", cut)
        folder.table("slice", cut.to_frame().drop(columns="by_category", errors="ignore"))
        shows = f"Malicious prompts refused where the model is moved along {' and along '.join(along or ())}"
        folder.figure("slice", cut.plot("malicious_refused", axis((4.2, 3.1)), least=least), shows=shows)
        run.answer(slice=[{name: point[name] for name in point if name != "by_category"} for point in cut.points])


def _ends(text: str) -> list[str]:
    """The models that a direction is between: none of a random one, one where it begins at the model of the study."""
    names = [] if text == "random" else [part.strip() for part in text.split(",")]
    if len(names) > 2 or not all(names):
        raise ValueError(f"--slice is random, MODEL, or FROM,TO, not {text!r}")
    return names


def _direction(run: Run, model: Any, ends: list[str]) -> WeightDirection:
    """A random direction, the way to a model, or from one to another."""
    from safecircuits.studies.landscape import direction_between, random_direction

    if not ends:
        return random_direction(model, run.seed)
    before = model if len(ends) == 1 else run.model(ends[0])
    return direction_between(before, run.model(ends[-1]))


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


def _distances(text: str, option: str = "--at") -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{option} holds distances, as in -0.5,0.5, not {text!r}")
    return found
