"""Options that are parameters of the library: kinds, values and defaults are read off its signatures and ``Literal``s.

Importing the library takes seconds and ``--help`` must not, so its source is parsed and not run.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import typer

REQUIRED = inspect.Parameter.empty
PLAIN: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
"""What an option may be that has no list of values."""


@dataclass(frozen=True)
class Of:
    """The annotation of a command's parameter that is one of the library's: ``Annotated[Any, Of(…)]``.

    Attributes:
        place: ``room.module:function.parameter`` or ``room.module:Class.field``, of which the kind or the values, and
            the default are taken; or ``room.module:Alias`` of a ``Literal``, which has values alone.
        help: what ``--help`` says of it.
        several: whether it may be repeated.
        optional: whether it may be left out though the library has another default, or none.
        least: the smallest number that is taken.
    """

    place: str
    help: str
    several: bool = False
    optional: bool = False
    panel: str | None = None
    least: float | None = None

    def parameter(self, name: str) -> inspect.Parameter:
        """The option as typer reads it."""
        values, default = read(self.place)
        if self.several or self.optional:
            default = None
        flag = f"--{name.replace('_', '-')}"
        if isinstance(values, type):
            kind: Any = values
            chosen = typer.Option(flag, help=self.help, rich_help_panel=self.panel, min=self.least)
        else:
            kind = list[str] if self.several else str
            chosen = self._one_of(values, flag)
        annotated: Any = Annotated[kind | None if default is None else kind, chosen]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)

    def _one_of(self, values: tuple[str, ...], flag: str) -> Any:
        def one_of(text: str) -> str:
            if text not in values:
                raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, values))}.")
            return text

        metavar = f"[{'|'.join(values)}]"
        return typer.Option(flag, help=self.help, rich_help_panel=self.panel, parser=one_of, metavar=metavar)


def read(place: str) -> tuple[tuple[str, ...] | type, Any]:
    """The values or the plain kind, and the default, of a parameter or field; or the values of an alias.

    Raises:
        LookupError: if there is none of this name, or none with a ``Literal`` or a plain kind.
    """
    module, _, name = place.partition(":")
    name, _, parameter = name.partition(".")
    found = _definition(module, name)
    default: Any = REQUIRED
    annotation: ast.AST | None
    if parameter:
        annotation, given = (_fields(found) if isinstance(found, ast.ClassDef) else _signature(found))[parameter]
        default = REQUIRED if given is None else _constant(module, given)
        if isinstance(annotation, ast.Name) and annotation.id in PLAIN:
            return PLAIN[annotation.id], default
    else:
        annotation = found.value if isinstance(found, ast.Assign) else found
    values = tuple(_values(module, annotation))
    if not values:
        raise LookupError(f"{place} has no Literal and no plain kind")
    return values, default


@cache
def _statements(module: str) -> list[str]:
    """The text of each statement of a module's top level, so that only what is asked for is parsed."""
    path = files("safecircuits").joinpath(*module.split("."))
    package = path.joinpath("__init__.py")
    path = package if package.is_file() else path.parent.joinpath(f"{path.name}.py")  # type: ignore[attr-defined]
    return re.split(r"^(?=[\w@\"])", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


@cache
def _definition(module: str, name: str) -> ast.AST:
    """What a module calls ``name``, wherever it is from."""
    for text in _statements(module):
        if name not in text or not text.startswith(("from ", f"def {name}(", f"class {name}", name)):
            continue
        try:
            node = ast.parse(text).body[0]
        except SyntaxError:  # a line of a string
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(_named(one, name) for one in node.targets):
            return node
        if isinstance(node, ast.ImportFrom) and node.module and any(one.name == name for one in node.names):
            return _definition(node.module.removeprefix("safecircuits."), name)
    raise LookupError(f"{module} has no {name}")


def _constant(module: str, value: ast.expr) -> Any:
    """A default as it is written, or that of the constant that it names."""
    if isinstance(value, ast.Name):
        found = _definition(module, value.id)
        assert isinstance(found, ast.Assign)
        return _constant(module, found.value)
    return ast.literal_eval(value)


def _fields(kind: ast.ClassDef) -> dict[str, tuple[ast.expr | None, ast.expr | None]]:
    """Annotation and default of each field of a dataclass."""
    return {
        one.target.id: (one.annotation, one.value)
        for one in kind.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }


def _signature(function: ast.AST) -> dict[str, tuple[ast.expr | None, ast.expr | None]]:
    """Annotation and default of each parameter."""
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    first = [None] * (len(given.args) - len(given.defaults))
    pairs = [*zip(given.args, [*first, *given.defaults], strict=True)]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {one.arg: (one.annotation, default) for one, default in pairs}


def _named(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _values(module: str, annotation: ast.AST | None) -> Iterator[str]:
    """The texts of the ``Literal`` in an annotation, which may be an alias, or one of several kinds."""
    if isinstance(annotation, ast.BinOp):
        yield from _values(module, annotation.left)
        yield from _values(module, annotation.right)
    elif isinstance(annotation, ast.Subscript) and _named(annotation.value, "Literal"):
        listed = annotation.slice
        for one in listed.elts if isinstance(listed, ast.Tuple) else [listed]:
            yield ast.literal_eval(one)
    elif isinstance(annotation, ast.Name) and annotation.id not in PLAIN:
        found = _definition(module, annotation.id)
        if isinstance(found, ast.Assign):
            yield from _values(module, found.value)
