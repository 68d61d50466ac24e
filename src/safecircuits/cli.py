"""The commands. Heavy imports wait until a command runs, so that ``--help`` is quick."""

from __future__ import annotations

import logging
import os
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID

# Before torch is imported: its threads then sleep while they wait for each other instead of spinning, which on a busy
# machine makes small models slower by an order of magnitude.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Find the part of a language model that makes it refuse, prove it is that part, keep it in fine-tuning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
organism_app = typer.Typer(help="The embedded models.", no_args_is_help=True)
app.add_typer(organism_app, name="organism")


class BackendName(StrEnum):
    """The two kinds of hooked model."""

    bridge = "bridge"
    hooked = "hooked"


OutOption = Annotated[Path, typer.Option("--out", help="Folder to write to; made if missing.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Decides every random choice.")]


@app.callback()
def _quiet() -> None:
    """Keep other libraries' notices from the reader: they are about those libraries, not about the run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)


@app.command()
def demo(
    out: OutOption = Path("demo"),
    backend: Annotated[BackendName, typer.Option(help="TransformerBridge or HookedTransformer.")] = BackendName.bridge,
    seed: SeedOption = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts and steps: to see that it runs.")] = False,
) -> None:
    """Run the whole chain on the embedded models: find, prove, protect, report. About five minutes on two cores.

    Example: safecircuits demo --out demo
    """
    with _one_line_errors():
        from safecircuits.demo import DemoSettings, run_demo

        settings = DemoSettings(backend=backend.value, seed=seed)
        results = run_demo(out, settings.quick() if quick else settings)
    for entry in results["conclusions"]:
        typer.echo(f"{entry['shows']:>8}  {entry['effect']} ({entry['paper']})")
    for name in ("report.html", "results.json", "freeze.safetensors", "figures"):
        typer.echo(f"wrote {out / name}")


@organism_app.command("build")
def organism_build(
    out: OutOption = Path("stages"),
    seed: SeedOption = 0,
) -> None:
    """Train the five embedded models again from their seed (about ten minutes); complete stages are kept.

    Example: safecircuits organism build --out stages
    """
    with _one_line_errors():
        from safecircuits.organism import build
        from safecircuits.progress import progress_bar

        with progress_bar() as bar:
            tasks: dict[str, TaskID] = {}

            def step(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=total)
                bar.update(tasks[stage], completed=done)

            build(out, seed=seed, progress=step)
    typer.echo(f"wrote {out}")


class _one_line_errors:
    """Bad input ends in one line and exit code 2; a defect still shows its traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError | OSError | FloatingPointError):
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
        if isinstance(error, KeyboardInterrupt):
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from error
