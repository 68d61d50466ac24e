"""The options of a command as typer reads them: a function's own, those of its dataclasses, and the shared ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import typer

from safecircuits.cli.config import ConfigOption
from safecircuits.cli.options import (
    Backend,
    BackendOption,
    ChatOption,
    ColumnOption,
    CountOption,
    DateOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelOption,
    OutOption,
    ResponsesOption,
    SeedOption,
    SystemOption,
    WhereOption,
)

# In the order of --help. None of these but the first five changes an outcome.
SHARED: Mapping[str, tuple[Any, Any]] = {
    "model": (ModelOption, inspect.Parameter.empty),
    "seed": (SeedOption, 0),
    "device": (DeviceOption, None),
    "dtype": (DtypeOption, None),
    "backend": (BackendOption, Backend.bridge),
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
    "where": (WhereOption, None),
}
"""Of those that runs on prompts have, too."""

TEMPLATE: Mapping[str, tuple[Any, Any]] = {
    "system": (SystemOption, None),
    "date": (DateOption, None),
    "template_option": (ChatOption, None),
}
"""Of those that go with ``--template``, for every command that has it."""


class OwnOptions:
    """The options of a function: one a parameter, and one a field where the annotation is a dataclass.

    Args:
        skip: how many first parameters are no options.
    """

    def __init__(self, function: Callable[..., None], skip: int = 0) -> None:
        self._parameters = list(inspect.signature(function, eval_str=True).parameters.values())[skip:]
        self._grouped = {p.name: _fields_of(p.annotation) for p in self._parameters if is_dataclass(p.annotation)}

    @property
    def listed(self) -> list[inspect.Parameter]:
        """All of them, in the order of the function's parameters."""
        return [one for p in self._parameters for one in self._grouped.get(p.name, [p])]

    def gathered(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What was given, as the function takes it."""
        values = dict(given)
        for p in self._parameters:
            if p.name in self._grouped:
                values[p.name] = p.annotation(**{one.name: values.pop(one.name) for one in self._grouped[p.name]})
        return values


def _fields_of(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        option(one.name, hints[one.name], inspect.Parameter.empty if one.default is MISSING else one.default)
        for one in fields(kind)
    ]


def option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """An option by its annotation, which is typer's, and its default."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def with_options(command: Callable[..., None], options: list[inspect.Parameter]) -> Callable[..., None]:
    """Give ``command``, which takes anything by name, the signature of these options and typer's context."""
    ctx = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [ctx, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in options)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
