"""``--config FILE``: the options of a command from a YAML or TOML file; what is typed on the command line wins."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from safecircuits.base.reading import require_size

LARGEST_CONFIG = 2**20
"""Bytes of a configuration file that is read."""
DEEPEST = 20
"""Levels of a YAML file; a list of values has four."""
_NOT_FROM_FILES = {"config", "help"}


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the options, before these are read."""
    if path is not None:
        try:
            ctx.default_map = {**(ctx.default_map or {}), **_checked(_parse(path), ctx, path)}
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
        rich_help_panel="Run",
    ),
]


def _parse(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no configuration file {str(path)!r}")
    kind = path.suffix.lower()
    if kind not in (".yaml", ".yml", ".toml"):
        raise ValueError(f"a configuration file ends in .yaml, .yml or .toml, not {path.name!r}")
    try:
        text = require_size(path, LARGEST_CONFIG).read_text(encoding="utf-8-sig")
        if kind == ".toml":
            return tomllib.loads(text)
        found = _yaml(text)
    except RecursionError as error:
        raise ValueError(f"cannot read {str(path)!r}: it is nested too deeply") from error
    except (OSError, ValueError) as error:  # TOML's and Unicode's errors are ValueErrors
        raise ValueError(f"cannot read {str(path)!r}: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} must hold option names with values, not a {type(found).__name__}")
    return found


def _yaml(text: str) -> Any:
    """The value of a YAML text, without aliases: a few lines of them can stand for more than any memory holds."""
    import yaml

    depth = 0
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):  # before anything is made of it
            if isinstance(token, yaml.AliasToken):
                raise ValueError("it has aliases (*name), which options do not need; write the values out")
            kind = type(token).__name__
            depth += kind.endswith("StartToken") - kind.endswith("EndToken")
            if depth > DEEPEST:
                raise ValueError("it is nested too deeply")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            keys = [str(key.value) for key, _ in root.value]
            if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
                raise ValueError(f"it has {twice[0]!r} {keys.count(twice[0])} times")
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _loader() -> Any:
    """YAML's safe loader, to which only true, false and null are more than text: ``6:14`` is 374 to YAML, ``010`` 8."""
    import yaml

    class Plain(yaml.SafeLoader):
        pass

    Plain.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag.rpartition(":")[2] in ("bool", "null")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Plain


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
