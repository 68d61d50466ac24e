"""All methods of fine-tuning by name, and a table of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, Field
from pathlib import Path

from safecircuits.training.method import METHODS, Method
from safecircuits.training.plain import Plain


def methods() -> Mapping[str, type[Method]]:
    """Every method by its name: plain fine-tuning first, and what the files of this folder register.

    Examples:
        >>> sc.baselines.methods()["lora"](r=4)
        Lora(r=4, alpha=32, target_modules=None)
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"safecircuits.baselines.{module.name}")
    return {Plain.name: Plain, **dict(sorted(METHODS.items()))}


def methods_table() -> str:
    """A table of all methods in Markdown: what each does, its settings with their defaults, what it does not take.

    Examples:
        >>> methods_table().splitlines()[2].split("|")[1]
        ' `plain` '
    """
    rows = ["| name | class | badge | what it does | settings | does not take |", "|---|---|---|---|---|---|"]
    for name, kind in methods().items():
        first = str(inspect.getdoc(kind)).partition("\n\n")[0].replace("``", "`")
        settings = ", ".join(f"`{one.name}{_default(one)}`" for one in kind.settings())
        refused = ", ".join(f"`{one}`" for one in kind.refuses)
        where = f"[`{kind.__name__}`][{kind.__module__}.{kind.__name__}]"
        rows.append(f"| `{name}` | {where} | {_badge(kind)} | {first} | {settings} | {refused} |")
    return "\n".join(rows)


def _badge(kind: type[Method]) -> str:
    """What it is of which paper, and what is other there."""
    if kind.badge is None:
        return ""
    return f"**{kind.badge}**: {kind.paper}{f'; {kind.differs}' if kind.differs else ''}"


def _default(one: Field[object]) -> str:
    if one.default_factory is not MISSING:
        return f"={one.default_factory()!r}"
    return "" if one.default is MISSING else f"={one.default!r}"
