"""A hook of MkDocs: the table of methods, read off their classes whenever the pages are built."""

from __future__ import annotations

from typing import Any

from safecircuits.baselines.registered import methods_table

MARK = "<!-- methods -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table where a page asks for it."""
    return markdown.replace(MARK, methods_table()) if MARK in markdown else markdown
