"""A hook of MkDocs: the reference of all commands, read off the command line whenever the pages are built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from typer.cli import get_docs_for_click

from safecircuits.cli import app
from safecircuits.cli.times import about

MARK = "<!-- commands -->"


def commands() -> str:
    """Every command with its arguments and options, one heading each, below the page's own."""
    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group, info_name="safecircuits"), name="safecircuits")
    text = text.split("**Usage**", 1)[1]  # the page has a title of its own
    text = re.sub(r"^Example: (.+?)\n\n", _example, "**Usage**" + text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(_linked(text.split("\n")))


def _linked(lines: list[str]) -> Iterator[str]:
    """Lists of commands as links: their descriptions are cut short, and stand whole below."""
    group, listing = "safecircuits", False
    for line in lines:
        heading = re.match(r"#+ `(.+)`", line)
        if heading:
            group = heading[1]
        listing = line == "**Commands**:" or (listing and not line.startswith("#"))
        command = re.match(r"\* `([\w-]+)`:", line) if listing else None
        yield f"* [`{command[1]}`](#{group.replace(' ', '-')}-{command[1]})" if command else line
        if heading and (takes := about(group.removeprefix("safecircuits "))):
            yield f"\n{takes}"


def _example(found: re.Match[str]) -> str:
    return f"```console\n$ {' '.join(found[1].split())}\n```\n\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put it where a page asks for it."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown
