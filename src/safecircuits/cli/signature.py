"""The options of a command as typer reads them: a function's own, those of its dataclasses, and the shared ones."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from safecircuits.cli.config import ConfigOption
from safecircuits.cli.declared import Of
from safecircuits.cli.options import (
    BackendOption,
    CategoriesOption,
    ChatOption,
    ColumnOption,
    CountOption,
    DateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelOption,
    OutOption,
    QuantizationOption,
    ResponsesOption,
    SeedOption,
    SystemOption,
    WhereOption,
)

# In the order of --help. None of these but the first seven changes an outcome.
SHARED: Mapping[str, tuple[Any, Any]] = {
    "model": (ModelOption, inspect.Parameter.empty),
    "seed": (SeedOption, 0),
    "device": (DeviceOption, None),
    "dtype": (DtypeOption, None),
    "device_map": (DeviceMapOption, None),
    "quantization": (QuantizationOption, None),
    "backend": (BackendOption, inspect.Parameter.empty),
    "out": (OutOption, inspect.Parameter.empty),
    "config": (ConfigOption, None),
    "json": (JsonOption, False),
    "force": (ForceOption, False),
}
"""Annotation and default of each option that every run has."""

PROMPTS: Mapping[str, tuple[Any, Any]] = {
    "n": (CountOption, None),
    "column": (ColumnOption, None),
    "responses": (ResponsesOption, None),
    "categories": (CategoriesOption, None),
    "where": (WhereOption, None),
}
"""Of those that runs on prompts have, too."""

TEMPLATE: Mapping[str, tuple[Any, Any]] = {
    "system": (SystemOption, None),
    "date": (DateOption, None),
    "template_option": (ChatOption, None),
}
"""Of those that go with ``--template``, for every command that has it."""


@dataclass(frozen=True)
class Fields:
    """Beside a dataclass of the library in an annotation: which of its fields are no options, and their panels."""

    without: tuple[str, ...] = ()
    panels: Mapping[str, str] = field(default_factory=dict)


class OwnOptions:
    """The options of a function: one a parameter, and one a field where the annotation is a dataclass.

    Fields that are not annotated for typer are options by their type, in the words of the class's docstring.

    Args:
        skip: how many first parameters are no options.
    """

    def __init__(self, function: Callable[..., None], skip: int = 0) -> None:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[skip:]
        self._parameters = [option(p.name, p.annotation, p.default) for p in own]
        self._kinds = {p.name: get_args(p.annotation)[:1] or (p.annotation,) for p in self._parameters}
        self._grouped = {
            p.name: _fields_of(kind, *(one for one in get_args(p.annotation) if isinstance(one, Fields)))
            for p in self._parameters
            if is_dataclass(kind := self._kinds[p.name][0])
        }

    @property
    def listed(self) -> list[inspect.Parameter]:
        """All of them, in the order of the function's parameters."""
        return [one for p in self._parameters for one in self._grouped.get(p.name, [p])]

    def gathered(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What was given, as the function takes it."""
        values = dict(given)
        for p in self._parameters:
            if p.name in self._grouped:
                kind = self._kinds[p.name][0]
                values[p.name] = kind(**{one.name: values.pop(one.name) for one in self._grouped[p.name]})
        return values


def _fields_of(kind: Any, chosen: Fields | None = None) -> list[inspect.Parameter]:
    chosen = chosen or Fields()
    hints, words = get_type_hints(kind, include_extras=True), attributes_of(kind)
    found = []
    for one in fields(kind):
        if one.name in chosen.without:
            continue
        hint = hints[one.name]
        if get_origin(hint) is not Annotated:
            panel = chosen.panels.get(one.name)
            hint = Annotated[_typed(hint), typer.Option(help=words.get(one.name), rich_help_panel=panel)]
        found.append(option(one.name, hint, inspect.Parameter.empty if one.default is MISSING else one.default))
    return found


def _typed(hint: Any) -> Any:
    """What of a union a command line can say: no function."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return Union[tuple(part for part in parts if get_origin(part) is not Callable)]  # noqa: UP007


def attributes_of(kind: type) -> dict[str, str]:
    """What a class's docstring says of each attribute first, as a sentence in plain text."""
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        if line and not line.startswith(" "):  # the next section
            break
        if head := re.match(r"    (\w+): (.*)", line):
            name, found[head[1]] = head[1], head[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    first = {name: re.split(r"[.;](?: |$)", text)[0].replace("`", "") for name, text in found.items()}
    return {name: f"{text[:1].upper()}{text[1:]}." for name, text in first.items()}


def option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """An option by its annotation, which is typer's or ``Of`` the library, and its default."""
    for one in getattr(annotation, "__metadata__", ()):
        if isinstance(one, Of):
            read = one.parameter(name)
            return read if default is inspect.Parameter.empty else read.replace(default=default)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def with_options(command: Callable[..., None], options: list[inspect.Parameter]) -> Callable[..., None]:
    """Give ``command``, which takes anything by name, the signature of these options and typer's context.

    Each paragraph of its text becomes one line, which a help of any width then breaks by itself.
    """
    ctx = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [ctx, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in options)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    command.__doc__ = "\n\n".join(" ".join(one.split()) for one in paragraphs)
    return command
