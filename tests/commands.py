"""Commands run as a user types them, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from safecircuits.cli import app


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> Any:
    got = run(*arguments)
    assert got.exit_code == 0, got.output
    return got


def refuse(*arguments: str | Path) -> str:
    """The one line on stderr of a command that ends in exit code 2."""
    got = run(*arguments)
    assert got.exit_code == 2, got.output
    assert got.stdout == ""
    [line] = got.stderr.splitlines()
    assert line.startswith("error: ")
    return str(line)
