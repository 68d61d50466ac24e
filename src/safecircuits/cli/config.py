"""``--config FILE``: the options of a command from a YAML or TOML file; what is typed on the command line wins."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from safecircuits.base.settings_file import read_settings
from safecircuits.cli.folded import FOLDED

_NOT_FROM_FILES = {"config", "help", "help_all"}


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the options, before these are read."""
    if path is not None:
        try:
            ctx.default_map = {**(ctx.default_map or {}), **_checked(read_settings(path), ctx, path)}
        except ValueError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML or TOML file with these options by name; the command line wins.",
        is_eager=True,
        callback=_read_config,
        rich_help_panel=FOLDED[0],
    ),
]


def _checked(values: dict[str, Any], ctx: typer.Context, path: Path) -> dict[str, Any]:
    """Values by parameter name, each in the form in which it could have been typed."""
    known = {p.name: p for p in ctx.command.params if p.name and p.name not in _NOT_FROM_FILES}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            options = ", ".join(sorted(n.replace("_", "-") for n in known))
            hint = f"did you mean {near[0].replace('_', '-')!r}?" if near else f"its options are {options}"
            raise ValueError(f"{str(path)!r}: {ctx.command_path!r} has no option {str(key)!r}; {hint}")
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value)):
            raise ValueError(f"{str(path)!r}: {key!r} must be one value or a list of values, not a table")
        if name in checked:
            raise ValueError(f"{str(path)!r} has {key!r} twice, once with _ for -")
        if isinstance(value, bool) and not getattr(known[name], "is_flag", False):
            raise ValueError(f"{str(path)!r}: {key!r} is {value} there, yes or no; put a text into quotation marks")
        several = bool(getattr(known[name], "multiple", False)) or known[name].nargs != 1
        if isinstance(value, list):
            value = [str(item) for item in value]
            checked[name] = value if several else ",".join(value)
        elif value is not None:
            checked[name] = [str(value)] if several else value if isinstance(value, bool) else str(value)
    return checked
