"""The public names, as the stubs beside the packages' ``__init__.py`` have them."""

from __future__ import annotations

import ast
from pathlib import Path

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
