"""What training does to the groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.units.options import (
    AnsweredOption,
    SafetyOption,
    Scoring,
    ShareOfOption,
    Shares,
    scores_of,
)

if TYPE_CHECKING:
    from safecircuits.units.groups import UnitGroups


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app)(transfer)


def transfer(
    run: Run,
    after: Annotated[str, typer.Option("--after", help="The model after training; --model is before it.")],
    safety: SafetyOption,
    utility: AnsweredOption,
    shares: Shares,
    scoring: Scoring,
    share_of: ShareOfOption,
    threshold: Annotated[float, typer.Option(help="Flows below this share of all units are not drawn.")] = 0.001,
) -> None:
    """Which units changed group in training? Both models classified with the same data and shares.

    Example: safecircuits units transfer --model organism:base --after organism:aligned --safety organism:malicious
    --utility organism:utility --n 60 --out runs/transfer
    """
    from safecircuits.units.groups import classify_units
    from safecircuits.units.transfer import transfer_of

    sets = {"safety": run.prompts("safety", safety, responses=True)}
    sets["utility"] = run.prompts("utility", utility, responses=True)
    folder = run.begin(run.source, after)

    def groups(source: str) -> UnitGroups:
        scores = scores_of(run, run.model(source), sets, None, scoring)
        return classify_units(scores["safety"], scores["utility"], share_of=share_of, **shares.options)

    both = [groups(source) for source in (run.source, after)]
    found = transfer_of(*both)
    for name, one in zip(("before", "after"), both, strict=True):
        folder.result(f"groups_{name}", one)
    folder.result("transfer", found)
    folder.table("transfer", found.to_frame(threshold), main=True)
    folder.figure("transfer", found.plot(axis((5.2, 3.6)), threshold=threshold), of=found)
    run.say(str(found))
    run.answer(totals=found.totals)
