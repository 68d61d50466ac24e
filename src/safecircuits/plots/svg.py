"""A figure as SVG inside a page: text as text, its own ids, and colours that the page's theme can change.

A run's folder may come from anybody, and its figures with it. What enters a page is therefore not the file but what a
sanitiser keeps of it: shapes and text of the kinds that a figure is drawn with. Scripts, handlers, frames, styles of
the page, links and addresses of any kind have no place in that list.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from safecircuits.plots.style import PALETTE, styled
from safecircuits.plots.values import svg_with_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 300
"""Characters that a page says of a value."""
WIDE = 360
"""Points from which on a figure needs the page's whole width for its text to be read."""
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_THEMED = {color: f"var(--{name}, {color})" for name, color in PALETTE.items()}

TAGS = {
    *("svg", "g", "defs", "path", "use", "rect", "circle", "ellipse", "line", "polygon", "polyline", "image"),
    *("text", "tspan", "clipPath", "pattern", "linearGradient", "radialGradient", "stop"),
}
_WITHOUT_TEXT = {"script", "style", "metadata", "title", "desc"}
"""Elements whose text is nothing to read."""
_BOX = {"x", "y", "width", "height"}
ATTRIBUTES = {
    "*": {"id", "style", "transform", "clip-path", "fill", "stroke", "opacity", "data-value"},
    "svg": {"viewBox"},
    "path": {"d"},
    "use": {"href", "xlink:href", *_BOX},
    "image": {"href", "xlink:href", "preserveAspectRatio", *_BOX},
    "rect": {"rx", "ry", *_BOX},
    "circle": {"cx", "cy", "r"},
    "ellipse": {"cx", "cy", "rx", "ry"},
    "line": {"x1", "y1", "x2", "y2"},
    "polygon": {"points"},
    "polyline": {"points"},
    "text": {"x", "y", "dx", "dy"},
    "tspan": {"x", "y", "dx", "dy"},
    "clipPath": {"clipPathUnits"},
    "pattern": {"patternUnits", "patternTransform", "patternContentUnits", *_BOX},
    "linearGradient": {"gradientUnits", "gradientTransform", "x1", "y1", "x2", "y2"},
    "radialGradient": {"gradientUnits", "gradientTransform", "cx", "cy", "r", "fx", "fy"},
    "stop": {"offset"},
}
_STYLES = {
    *("fill", "fill-opacity", "fill-rule", "opacity", "stop-color", "stop-opacity", "clip-path", "clip-rule"),
    *(f"stroke{part}" for part in ("", "-width", "-opacity", "-linejoin", "-linecap", "-dasharray", "-dashoffset")),
    *("stroke-miterlimit", "image-rendering", "text-anchor", "dominant-baseline", "white-space"),
    *("font", *(f"font-{part}" for part in ("family", "size", "style", "weight", "variant", "stretch"))),
}
_REFERENCE = r"url\(#[\w.:-]+\)"
_PLAIN = re.compile(rf"(?:{_REFERENCE}|(?!url\()[-+\w\s.,()#%])*", re.IGNORECASE)
_DECLARED = re.compile(rf"{_REFERENCE}|[-+\w\s.,#%'\"]+", re.IGNORECASE)
_ID = re.compile(r"[\w.:-]+")
_PICTURE = re.compile(r"data:image/png;base64,[\s\w+/=]*")
_ROOT = re.compile(r"<svg[^>]*>")


@styled
def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """``figure`` as one ``<svg>`` element that scales with its box.

    Colours become ``var(--name, #hex)`` by the names of ``style.PALETTE``: a page that sets these changes them, any
    other shows the originals.

    Args:
        name: put before every id, so that the ids of several figures in a page differ: letters, digits and ``_``.
        label: what the figure shows, for those who do not see it (``aria-label``).
    """
    return inline_saved(svg_with_values(figure, transparent=True, metadata=_NO_METADATA), name, label)


def inline_saved(svg: str, name: str, label: str) -> Markup:
    """The same of a figure that a run directory holds as a file, whoever wrote it.

    Raises:
        ValueError: if nothing of it is a figure.
    """
    import nh3

    def kept(tag: str, attribute: str, value: str) -> str | None:
        return _kept(tag, attribute, value, name)

    width, height = size(svg)
    cleaned = nh3.clean(
        svg,
        tags=TAGS,
        clean_content_tags=_WITHOUT_TEXT,
        attributes=ATTRIBUTES,
        attribute_filter=kept,
        url_schemes={"data"},
        link_rel=None,
    )
    start, end = cleaned.find("<svg"), cleaned.rfind("</svg>")
    if start < 0 or end < 0:
        raise ValueError(f"no figure that can be shown: {svg[:60]!r}")
    cleaned = cleaned[start : end + len("</svg>")]
    kind = "chart wide" if is_wide(svg) else "chart"
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" class="{kind}">'
    return Markup(_ROOT.sub(lambda _: opening, cleaned, count=1).replace("xlink:href=", "href="))


def size(svg: str) -> tuple[float, float]:
    """Width and height in points of a figure that this package wrote."""
    box = re.search(r'viewBox="0 0 (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)"', svg)
    if box is None:
        raise ValueError("no SVG that this package wrote: it has no viewBox")
    return float(box[1]), float(box[2])


def is_wide(svg: str) -> bool:
    """Whether it needs the page's whole width."""
    return size(svg)[0] > WIDE


def _kept(tag: str, attribute: str, value: str, name: str) -> str | None:
    """An attribute's value as the page has it, or None where it is of no kind that a figure has."""
    if attribute == "data-value":
        return value[:LONGEST]  # a page sets it as text, whatever it says
    if attribute == "id":
        return f"{name}-{value}" if _ID.fullmatch(value) else None
    if attribute in ("href", "xlink:href"):
        if tag == "image":
            return value if _PICTURE.fullmatch(value) else None
        return f"#{name}-{value[1:]}" if value[:1] == "#" and _ID.fullmatch(value[1:]) else None
    if attribute == "style":
        value = "; ".join(part for part in map(_declaration, value.split(";")) if part)
    elif not _PLAIN.fullmatch(value):
        return None
    return value.replace("url(#", f"url(#{name}-")


def _declaration(text: str) -> str | None:
    """``property: value`` if it is one by which a figure is drawn, in the page's colours."""
    key, _, value = (part.strip() for part in text.partition(":"))
    if key not in _STYLES or not _DECLARED.fullmatch(value):
        return None
    return f"{key}: {_THEMED.get(value, value) if key in ('fill', 'stroke') else value}"
