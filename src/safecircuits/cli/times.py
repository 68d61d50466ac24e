"""About how long a command takes, as ``python -m benchmarks.performance.commands`` measured it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from typer.core import TyperCommand

NAME = "times.json"
"""The file of seconds, beside this one."""


def about(command: str) -> str | None:
    """A sentence for ``--help``; None for a command that was not measured, whose own words say it.

    Examples:
        >>> from safecircuits.cli.times import about
        >>> about("demo") is None  # which says it itself
        True
    """
    path = files("safecircuits.cli").joinpath(NAME)
    measured = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if command not in measured.get("seconds", {}):
        return None
    on = measured["on"].get(command, measured["on"][""])
    return f"Takes about {rounded(measured['seconds'][command])} of one core{f', {on}' if on else ''}."


def rounded(seconds: float) -> str:
    """Seconds as one would say them: to five up to a minute and a half, then in minutes.

    Examples:
        >>> from safecircuits.cli.times import rounded
        >>> rounded(3.2), rounded(41), rounded(200)
        ('5 s', '40 s', '3 min')
    """
    return f"{max(5, 5 * round(seconds / 5))} s" if seconds < 90 else f"{round(seconds / 60)} min"


class TimedCommand(TyperCommand):
    """A command whose ``--help`` ends with about how long it takes."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        kept = self.epilog
        try:
            self.epilog = "\n\n".join(filter(None, (about(words_of(ctx)), kept)))
            super().format_help(ctx, formatter)
        finally:
            self.epilog = kept


def words_of(ctx: Any) -> str:
    """The command's words, without the program's: ``layers similarity``."""
    words: list[str] = []
    while ctx.parent is not None:
        words.insert(0, ctx.info_name)
        ctx = ctx.parent
    return " ".join(words)
