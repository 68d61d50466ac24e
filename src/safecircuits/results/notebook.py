"""A result as a notebook shows it: what it is, what it says, and its table."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from safecircuits.base.text import plain

MAX_ROWS = 24
"""Rows of a longer table that are shown: the first and last halves of them."""


def html_card(result: object) -> str:
    """Class, verdict and table of ``result`` as HTML; all text is escaped."""
    parts = [f"<strong>{escape(type(result).__name__)}</strong>"]
    if isinstance(verdict := getattr(result, "verdict", None), str):
        parts.append(f"<p>{escape(verdict)}</p>")
    to_frame = getattr(result, "to_frame", None)
    if to_frame is not None:
        frame = to_frame()
        parts.append(frame.to_html(max_rows=MAX_ROWS, border=0, float_format="{:.4g}".format, na_rep="–"))
    else:
        parts.append(f"<p>{escape(str(result))}</p>")
    facts = [f"{key}: {plain(value)}" for key, value in getattr(result, "provenance", {}).items() if _short(value)]
    if facts:
        parts.append(f"<p><small>{escape(' · '.join(facts))}</small></p>")
    return "<div>" + "".join(parts) + "</div>"


def facts_table(title: str, lines: Iterable[str]) -> str:
    """Lines of ``name: value`` as a small HTML table; all text is escaped."""
    rows = (line.split(": ", 1) for line in lines)
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"


def _short(value: object) -> bool:
    return isinstance(value, str | int | float | bool) and len(str(value)) < 80
