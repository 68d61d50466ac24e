"""``--help`` without what every command has, and ``--help-all`` with it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from safecircuits.cli.times import TimedCommand

FOLDED = ("Every run", "Reading prompts")
"""Panels that ``--help`` names in one line."""
_ALL = "safecircuits: help with all options"


def _show_all(ctx: typer.Context, asked: bool) -> None:
    if asked:
        ctx.meta[_ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


HelpAllOption = Annotated[
    bool,
    typer.Option("--help-all", help="Show the options of every run, too.", is_eager=True, callback=_show_all),
]


class FoldedCommand(TimedCommand):
    """A command whose ``--help`` ends with the names of the options that are folded away."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        folded = [] if ctx.meta.get(_ALL) else [p for p in self.params if getattr(p, "rich_help_panel", None) in FOLDED]
        kept = self.epilog
        try:
            for option in folded:
                option.hidden = True  # type: ignore[attr-defined]
            if folded:
                names = ", ".join(str(option.opts[0]) for option in folded)
                self.epilog = f"More, as in every run (--help-all explains them): {names}"
            super().format_help(ctx, formatter)
        finally:
            for option in folded:
                option.hidden = False  # type: ignore[attr-defined]
            self.epilog = kept
