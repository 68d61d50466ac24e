"""Options that are parameters of the library: their values and defaults are read off its signatures and ``Literal``s.

Importing the library takes seconds and ``--help`` must not, so its source is parsed and not run.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import typer

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Of:
    """The annotation of a command's parameter that is one of the library's: ``Annotated[Any, Of(…)]``.

    Attributes:
        place: ``room.module:function.parameter``, of which the values and the default are taken; or
            ``room.module:Alias`` of a ``Literal``, which has values alone.
        help: what ``--help`` says of it.
        several: whether it may be repeated.
        optional: whether it may be left out though the library has another default, or none.
    """

    place: str
    help: str
    several: bool = False
    optional: bool = False
    panel: str | None = None

    def parameter(self, name: str) -> inspect.Parameter:
        """The option as typer reads it."""
        values, default = read(self.place)
        if self.several or self.optional:
            default = None
        kind: Any = list[str] if self.several else str

        def one_of(text: str) -> str:
            if text not in values:
                raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, values))}.")
            return text

        chosen = typer.Option(
            f"--{name.replace('_', '-')}",
            help=self.help,
            rich_help_panel=self.panel,
            parser=one_of,
            metavar=f"[{'|'.join(values)}]",
        )
        annotated: Any = Annotated[kind | None if default is None else kind, chosen]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)


def read(place: str) -> tuple[tuple[str, ...], Any]:
    """The values and the default of a parameter, or the values of an alias, for which there is no default.

    Raises:
        LookupError: if there is none of this name, or none that has a ``Literal``.
    """
    module, _, name = place.partition(":")
    name, _, parameter = name.partition(".")
    found = _definition(module, name)
    default: Any = REQUIRED
    annotation: ast.AST | None
    if parameter:
        assert isinstance(found, ast.FunctionDef)
        annotation, given = _signature(found)[parameter]
        default = REQUIRED if given is None else ast.literal_eval(given)
    else:
        annotation = found.value if isinstance(found, ast.Assign) else found
    values = tuple(_values(module, annotation))
    if not values:
        raise LookupError(f"{place} has no Literal")
    return values, default


@cache
def _source(module: str) -> ast.Module:
    path = files("safecircuits").joinpath(*module.split("."))
    package = path.joinpath("__init__.py")
    path = package if package.is_file() else path.parent.joinpath(f"{path.name}.py")  # type: ignore[attr-defined]
    return ast.parse(path.read_text(encoding="utf-8"))


def _definition(module: str, name: str) -> ast.AST:
    """What a module calls ``name``, wherever it is from."""
    for node in _source(module).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            return node
        if isinstance(node, ast.ImportFrom) and node.module and any(one.name == name for one in node.names):
            return _definition(node.module.removeprefix("safecircuits."), name)
    raise LookupError(f"{module} has no {name}")


def _signature(function: ast.FunctionDef) -> dict[str, tuple[ast.expr | None, ast.expr | None]]:
    """Annotation and default of each parameter."""
    given = function.args
    first = [None] * (len(given.args) - len(given.defaults))
    pairs = [*zip(given.args, [*first, *given.defaults], strict=True)]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {one.arg: (one.annotation, default) for one, default in pairs}


def _values(module: str, annotation: ast.AST | None) -> Iterator[str]:
    """The texts of the ``Literal`` in an annotation, which may be an alias, or one of several kinds."""
    if isinstance(annotation, ast.BinOp):
        yield from _values(module, annotation.left)
        yield from _values(module, annotation.right)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        listed = annotation.slice
        for one in listed.elts if isinstance(listed, ast.Tuple) else [listed]:
            yield ast.literal_eval(one)
    elif isinstance(annotation, ast.Name) and annotation.id not in ("str", "int", "float", "bool"):
        found = _definition(module, annotation.id)
        if isinstance(found, ast.Assign):
            yield from _values(module, found.value)
