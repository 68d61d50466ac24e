"""What every command has around it: shared options, a run directory, one-line errors, quiet.

A command is a function whose first argument is a ``Run``; ``run_command`` adds the shared options and registers it::

    @run_command(app)
    def similarity(run: Run, normal: NormalOption, malicious: MaliciousOption) -> None:
        \"\"\"One sentence for --help. Example: safecircuits layers similarity …\"\"\"
        n, m = run.prompts("normal", normal), run.prompts("malicious", malicious)
        folder = run.begin()                    # all inputs are known: a finished run ends here
        gap = layer_gap(run.model(), n, m)
        folder.result("gap", gap)
        folder.table("gap", gap.to_frame(), main=True)
        run.say(f"onset {gap.onset()}")

A parameter whose annotation is a dataclass stands for an option a field: so commands share lists of options.

What it says goes to stdout, or with ``--json`` its answer, what it says and the main table; everything else goes to
stderr, at last the path of the run's page.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from safecircuits.base.processes import is_main
from safecircuits.cli.folded import FoldedCommand, HelpAllOption
from safecircuits.cli.manners import one_line_errors, only_one_speaks, quiet, require_one_process
from safecircuits.cli.options import (
    BY_SET,
    OutOption,
    as_recorded,
    by_set,
    conditions,
    counts,
    template_options,
    torch_device,
    torch_dtype,
)
from safecircuits.cli.signature import PROMPTS, SHARED, TEMPLATE, OwnOptions, option, with_options
from safecircuits.cli.times import TimedCommand, words_of
from safecircuits.cli.written import REPORT, listed, write_page

if TYPE_CHECKING:
    from safecircuits.model.sites import HookedModel
    from safecircuits.results.run import RunDirectory

_NO_ARGUMENTS = {"out", "config", "json", "force", "judge_calls", "judge_timeout", "judge_retries"}
"""What a run goes on with, however it was begun: no result depends on them."""


class Run:
    """One run of a command: its shared options, its inputs and their fingerprints, its directory."""

    def __init__(self, command: str, arguments: dict[str, Any], shared: dict[str, Any]) -> None:
        self.command, self.arguments = command, arguments
        self.source: str = shared.get("model", "")
        self.seed, self.device = shared["seed"], shared["device"]
        self.backend: Any = shared["backend"]
        self.dtype = shared["dtype"]
        self.device_map, self.quantization = shared.get("device_map"), shared.get("quantization")
        self.out: Path = shared["out"]
        self.force, self.json = shared["force"], shared["json"]
        self.where = conditions(shared.get("where") or [])
        self.by_set: dict[str, Any] = {key: by_set(shared.get(key) or [], f"--{key}") for key in BY_SET}
        self.by_set["n"] = counts(self.by_set["n"])
        self.chosen: set[str] = set()  # the command's own options that were given, and not left at their defaults
        self.inputs: dict[str, Any] = {}
        self.directory: RunDirectory | None = None

    def prompts(self, name: str, source: str | None, *, responses: bool = False, chats: bool = False) -> Any:
        """The prompts of an option, by ``--column``, ``--where`` and ``--n``; None for an option that was left out.

        Args:
            name: by which their fingerprint is kept.
            responses: whether the answers that go with them are read too, by ``--responses``.
            chats: whether a source with chats of several turns is read as a ``ChatSet``.
        """
        if source is None:
            return None
        from safecircuits.data.hub import revision_read
        from safecircuits.data.sources import is_ours, load_prompts, load_training_data

        given = {key: self.given(key, name) for key in BY_SET}
        if is_ours(source):  # a column for every set is meant for those that have columns
            given |= {key: self.by_set[key].get(name) for key in BY_SET if key != "n"}
        prompts: Any = (load_training_data if chats else load_prompts)(
            source,
            **given | ({} if responses else {"responses": ""}),
            where=self.where.get("", {}) | self.where.get(name, {}),
        )
        self.inputs[name] = {"source": source, "n": len(prompts), "sha": prompts.fingerprint}
        if revision := revision_read(source):
            self.inputs[name]["revision"] = revision
        return prompts

    def given(self, key: str, name: str) -> Any:
        """What an option of ``BY_SET`` says of the set ``name``, or None."""
        values = self.by_set[key]
        return values.get(name, values.get(""))

    def begin(self, *models: str) -> RunDirectory:
        """Open the run directory, once all inputs but the models are loaded; a finished run ends the command here.

        Args:
            models: sources of the models that will be loaded, whose fingerprints are inputs too; ``--model`` if none.
        """
        from safecircuits.model.fingerprint import fingerprint_checkpoint
        from safecircuits.results.run import RunDirectory

        for key, sets in {"where": self.where, **self.by_set}.items():
            if unread := set(sets) - {"", *self.inputs}:
                raise ValueError(f"--{key} names {min(unread)!r}, which is no set of prompts that this run reads")
        for source in models or filter(None, (self.source,)):
            self.inputs[f"model {source}"] = fingerprint_checkpoint(source) or source
        self.directory = RunDirectory.open(
            self.out, self.command, self.arguments, inputs=self.inputs, replace=self.force
        )
        if self.directory.resumed:
            typer.echo(f"goes on with the interrupted run in {self.out}", err=True)
        return self.directory

    def model(self, source: str | None = None) -> HookedModel:
        """``--model``, or another source, loaded as the shared options say."""
        from safecircuits.base.progress import console, without_bars
        from safecircuits.model.load import load_model

        with nullcontext() if console.is_terminal else without_bars():
            return load_model(
                source or self.source,
                backend=self.backend,
                dtype=self.torch_dtype,
                device=torch_device(self.device),
                device_map=self.device_map,
                quantization=self.quantization,
            )

    @property
    def torch_dtype(self) -> Any:
        """``--dtype`` as PyTorch's, or None."""
        return torch_dtype(self.dtype)

    @property
    def torch_device(self) -> Any:
        """``--device``, checked: a ValueError where this machine has no such device.

        It is for what loads models itself, in one place and with plain numbers, and refuses the options of others.
        """
        for name, value in (("--device-map", self.device_map), ("--quantization", self.quantization)):
            if value is not None:
                raise ValueError(f"{name} is for commands that read a model; {self.command!r} also writes its weights")
        return torch_device(self.device)

    @property
    def provenance(self) -> dict[str, Any]:
        """What a page that is made before the run is complete says of how its numbers came about."""
        from safecircuits.results.provenance import provenance

        return provenance(command=f"safecircuits {self.command}", seed=self.seed, arguments=self.arguments)

    def say(self, text: str) -> None:
        """A finding in words, kept in ``run.json`` and printed at the end."""
        assert self.directory is not None
        self.directory.say(text)

    def caveat(self, text: str) -> None:
        """What must be held against the findings, if anything: the page opens with the first of these."""
        from safecircuits.report.opening import CAVEAT

        if text:
            self.say(f"{CAVEAT}{text}")

    def answer(self, **values: Any) -> None:
        """What the run found, as JSON by name: the first thing that ``--json`` prints."""
        assert self.directory is not None
        self.directory.record.setdefault("answer", {}).update(values)

    def close(self) -> None:
        """Complete the run, say what was written, print what was found."""
        if self.directory is None:
            return
        last = self.directory.finish()
        if not is_main():
            return
        page = self.out / REPORT
        if page not in self.directory.written:
            write_page(self.out)
        for line in listed([path for path in (*self.directory.written, last) if path != page]):
            typer.echo(f"wrote {line}", err=True)
        self.show(self.directory.record)
        typer.echo(f"wrote {page}", err=True)

    def show(self, record: dict[str, Any]) -> None:
        """What was found, on stdout; the run may be one that somebody else made."""
        from safecircuits.base.reading import inside, parse_json, printable, read_text

        kept = record.get("answers")  # a file of prompts and answers, which findings must not hold: they are published
        answers = [parse_json(one) for one in read_text(inside(self.out, kept)).split("\n") if one] if kept else []
        if self.json:
            import json

            import pandas as pd

            table = record.get("main_table")
            rows = (
                answers if table is None else json.loads(pd.read_csv(inside(self.out, table)).to_json(orient="records"))
            )
            found = {key: record.get(key, kind()) for key, kind in (("answer", dict), ("findings", list))}
            typer.echo(json.dumps({"command": record["command"], **found, "table": rows}, indent=1))
        else:
            for line in record.get("findings", []):
                typer.echo(printable(line))
            for row in answers:
                typer.echo(f"\n> {printable(row['prompt'])}\n{printable(row['completion'])}")


def run_command(
    app: typer.Typer,
    name: str | None = None,
    *,
    prompts: bool = True,
    model: bool = True,
    out: Path | None = None,
    trains: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function that takes a ``Run`` as a command with the shared options and a run directory.

    Args:
        name: of the command; the function's unless given.
        prompts: whether it reads sets of prompts, and has ``--n``, ``--column``, … for that.
        model: whether it has ``--model``; otherwise it says itself which models it runs.
        out: the folder of the run unless given; with None it must be given.
        trains: whether it trains, which it does in one process.
    """
    shared = {**SHARED, **(PROMPTS if prompts else {})}
    if not model:
        del shared["model"]
    if out is not None:
        shared["out"] = (OutOption, out)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = OwnOptions(function, skip=1)
        names = {one.name for one in own.listed}
        beside = {key: kind for key, kind in TEMPLATE.items() if "template" in names and key not in names}

        def body(ctx: typer.Context, **given: Any) -> None:
            if trains:
                require_one_process(words_of(ctx))
            from safecircuits.prompts.templates import Template
            from safecircuits.results.run import AlreadyComplete

            given.pop("help_all")
            chosen = {key: given.pop(key) for key in (*shared, *beside)}
            arguments = {key: value for key, value in (chosen | given).items() if key not in _NO_ARGUMENTS}
            arguments |= {key: as_recorded(key, arguments[key]) for key in BY_SET if key in arguments}
            if beside:
                words = {key: chosen[key] for key in beside}
                options = template_options(words.pop("template_option", None))
                given["template"] = Template(given["template"], **words, options=options)
            run = Run(words_of(ctx), {key: _plain(value) for key, value in arguments.items()}, chosen)
            run.chosen = {name for name in given if _is_given(ctx, name)}
            try:
                with redirect_stdout(sys.stderr):  # what libraries print must not mix with the results on stdout
                    function(run, **own.gathered(given))
            except AlreadyComplete as done:
                typer.echo(f"{done}; --force runs it again", err=True)
                run.show(dict(done.run))
                if (run.out / REPORT).is_file():
                    typer.echo(f"its page is {run.out / REPORT}", err=True)
                _end(done.run)
            except BaseException as error:
                if run.directory is not None:
                    run.directory.abandon(error)
                raise
            else:
                run.close()
                _end({} if run.directory is None else run.directory.record)

        common = [option(key, *kind) for key, kind in {**shared, **beside}.items()]
        folding = option("help_all", HelpAllOption, False)
        app.command(name, cls=FoldedCommand)(_framed(function, body, [*own.listed, *common, folding]))
        return function

    return register


def _end(record: Mapping[str, Any]) -> None:
    """Leave with the exit code that a run's record has: 1 for what a gate must not let through."""
    if record.get("exit"):
        raise typer.Exit(int(record["exit"]))


def plain_command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command without a run directory: ``--config``, quiet and one-line errors alone."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = OwnOptions(function)

        def body(ctx: typer.Context, **given: Any) -> None:  # noqa: ARG001  typer's
            given.pop("config")
            if is_main():  # of several processes one writes
                function(**own.gathered(given))

        app.command(name, cls=TimedCommand)(_framed(function, body, [*own.listed, option("config", *SHARED["config"])]))
        return function

    return register


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _framed(
    function: Callable[..., None], body: Callable[..., None], options: list[inspect.Parameter]
) -> Callable[..., None]:
    """``body`` inside the frame, with the name and help of ``function`` and a signature that typer can read."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        with only_one_speaks(), one_line_errors(), quiet():
            body(**given)

    return with_options(command, options)


def _plain(value: Any) -> Any:
    """An option's value as JSON."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
