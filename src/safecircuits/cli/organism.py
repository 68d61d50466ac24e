"""``safecircuits organism``: the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safecircuits.cli.frame import plain_command
from safecircuits.cli.options import SeedOption

if TYPE_CHECKING:
    from rich.progress import TaskID

app = typer.Typer(help="The embedded models.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps ``build`` a word of its own while it is the only one."""


@plain_command(app)
def build(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to; made if missing.")] = Path("stages"),
    seed: SeedOption = 0,
) -> None:
    """Train the five embedded models again from their seed (about ten minutes); complete stages are kept.

    Example: safecircuits organism build --out stages
    """
    from safecircuits.base.progress import progress_bar
    from safecircuits.organism.stages import build as build_stages

    with progress_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        build_stages(out, seed=seed, progress=step)
    typer.echo(f"wrote {out}", err=True)
