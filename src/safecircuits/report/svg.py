"""A figure as SVG inside a page: text as text, its own ids, and colours that the page's theme can change."""

from __future__ import annotations

import re
from io import StringIO
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from safecircuits.report.style import PALETTE, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 360
"""Points from which on a figure needs the page's whole width for its text to be read."""
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_THEMED = {color: f"var(--{name}, {color})" for name, color in PALETTE.items()}


@styled
def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """``figure`` as one ``<svg>`` element that scales with its box.

    Colours become ``var(--name, #hex)`` by the names of ``style.PALETTE``: a page that sets these changes them, any
    other shows the originals.

    Args:
        name: put before every id, so that the ids of several figures in a page differ.
        label: what the figure shows, for those who do not see it (``aria-label``).
    """
    written = StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata=_NO_METADATA)
    return inline_saved(written.getvalue(), name, label)


def inline_saved(svg: str, name: str, label: str) -> Markup:
    """The same of a figure that a run directory holds as a file."""
    svg = svg[svg.index("<svg") :].strip()  # no XML prolog or doctype inside HTML
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'\bhref="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'style="[^"]*"', lambda style: _themed(style.group()), svg)
    width, height = size(svg)
    kind = "chart wide" if is_wide(svg) else "chart"
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" class="{kind}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1))


def size(svg: str) -> tuple[float, float]:
    """Width and height in points of a figure that this package wrote."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if box is None:
        raise ValueError("no SVG that this package wrote: it has no viewBox")
    return float(box[1]), float(box[2])


def is_wide(svg: str) -> bool:
    """Whether it needs the page's whole width."""
    return size(svg)[0] > WIDE


def _themed(style: str) -> str:
    return re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda m: f"{m[1]}: {_THEMED.get(m[2], m[2])}", style)
