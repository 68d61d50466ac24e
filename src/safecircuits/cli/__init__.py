"""The commands. Heavy imports wait until a command runs, so that ``--help`` is quick.

One file a group of commands; ``frame.py`` has what they share: options, the run directory, errors, quiet.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from safecircuits.cli import (
    audit,
    demo,
    direction,
    doctor,
    evaluate,
    finetune,
    generate,
    judge,
    layers,
    mask,
    organism,
    probe,
    report,
    study,
    units,
)

# Before torch is imported: its threads then sleep while they wait for each other instead of spinning, which on a busy
# machine makes small models slower by an order of magnitude.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["app"]

app = typer.Typer(
    help="Find the part of a language model that makes it refuse, prove it is that part, keep it in fine-tuning.",
    epilog="Exit codes: 0 done, 2 bad input, 130 interrupted, 1 a defect of ours, or an audit that is not passed. "
    "SAFECIRCUITS_TRACEBACK=1 shows where bad input was found, too.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        from safecircuits.base.version import __version__

        typer.echo(f"safecircuits {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Makes a group of what would be a single command if only one were added."""


demo.add_to(app)
app.add_typer(layers.app, name="layers")
app.add_typer(direction.app, name="direction")
probe.add_to(app)
app.add_typer(units.app, name="units")
app.add_typer(mask.app, name="mask")
generate.add_to(app)
evaluate.add_to(app)
app.add_typer(judge.app, name="judge")
audit.add_to(app)
app.add_typer(study.app, name="study")
finetune.add_to(app)
report.add_to(app)
app.add_typer(organism.app, name="organism")
doctor.add_to(app)
