"""The public names, as the stubs beside the packages' ``__init__.py`` have them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import safecircuits

ROOT = Path(safecircuits.__file__).parent
ROOMS = tuple(sorted(stub.parent.name for stub in ROOT.glob("*/__init__.pyi")))
"""Rooms with public names."""


def homes(room: str = "") -> dict[str, str]:
    """The public names of ``room``, or of the top, and the full name of the module that each is imported from."""
    package = f"safecircuits.{room}".rstrip(".")
    statements = ast.parse((ROOT / room / "__init__.pyi").read_text(encoding="utf-8")).body
    return {
        alias.name: f"{package}.{statement.module}"
        for statement in statements
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }


def everything() -> dict[str, Any]:
    """What is public anywhere, by its path from ``safecircuits``: ``localize``, ``units.coupled_scores``."""
    top = homes()
    below = {f"{room}.{name}": (name, module) for room in ROOMS for name, module in homes(room).items()}
    paths = {name: (name, module) for name, module in top.items()}
    paths |= {path: home for path, home in below.items() if paths.get(home[0]) != home}
    return {path: getattr(importlib.import_module(module), name) for path, (name, module) in paths.items()}
