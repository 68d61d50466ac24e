"""The values that a figure shows, each where it is drawn, so that a page can say them under the pointer.

They are read off matplotlib's own axes, whatever drew there: marks and lines, bars, cells of an image, and patches that
have a label. A mark on an interval (a line through it, or a band of its colour around it) is said with its ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import FillBetweenPolyCollection, LineCollection, PathCollection
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MOST = 1500
"""Values of one figure that are told; of more, every second or third."""
_REACH = 4.0
"""Points around a mark at which it answers to the pointer."""


@dataclass(frozen=True)
class Value:
    """What is drawn at a box in data coordinates (of a mark it has no size), in words."""

    ax: Axes
    low: tuple[float, float]
    high: tuple[float, float]
    text: str


def svg_with_values(figure: Figure, **options: Any) -> str:
    """The figure as SVG with an invisible shape on every value: ``data-value`` says it in words.

    Args:
        options: of ``savefig``.
    """
    written = StringIO()
    figure.savefig(written, format="svg", **options)
    svg = written.getvalue()
    found = list(values(figure))
    shapes = "".join(_shape(figure, value) for value in found[:: 1 + len(found) // MOST])
    end = svg.rfind("</svg>")
    return f'{svg[:end]}<g id="values" style="fill-opacity: 0">{shapes}</g>\n{svg[end:]}' if shapes else svg


def values(figure: Figure) -> Iterator[Value]:
    """Every value of a figure, axis by axis, each once."""
    axes = [ax for ax in figure.axes if ax.get_label() != "<colorbar>" and ax.axison]
    for ax in axes:
        title = next((text for side in ("left", "center") if (text := ax.get_title(loc=side))), "")
        before = f"{' '.join(title.split())} · " if title and len(axes) > 1 else ""
        seen: set[tuple[object, str]] = set()
        for value in _values(ax):
            if (key := (value.low, value.text)) not in seen and _is_shown(value):
                seen.add(key)
                yield Value(ax, value.low, value.high, before + value.text)


def _values(ax: Axes) -> Iterator[Value]:
    bars = {id(patch) for one in ax.containers if isinstance(one, BarContainer) for patch in one}
    for bar in (one for one in ax.containers if isinstance(one, BarContainer)):
        for patch in bar:
            yield _of_bar(ax, _name(bar), patch, str(bar.orientation))
    for line in ax.lines:
        if line.get_transform() == ax.transData:
            xs, ys = (np.asarray(line.get_data(orig=False)[side], dtype=float) for side in range(2))
            for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
                yield Value(ax, (x, y), (x, y), _said(ax, _name(line), x, y, line.get_color()))
    for marks in ax.collections:
        if isinstance(marks, PathCollection) and not isinstance(marks, FillBetweenPolyCollection):
            for x, y in np.asarray(marks.get_offsets(), dtype=float).tolist():
                yield Value(ax, (x, y), (x, y), _said(ax, _name(marks), x, y, None))
    for image in ax.images:
        yield from _of_image(ax, np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan))
    for patch in ax.patches:
        if isinstance(patch, Rectangle) and id(patch) not in bars and (name := _name(patch)):
            (x, y), width, height = patch.get_xy(), patch.get_width(), patch.get_height()
            at = [_at(ax.yaxis, y + height / 2), _at(ax.xaxis, x + width / 2), name]
            yield Value(ax, (x, y), (x + width, y + height), " · ".join(filter(None, at)))


def _of_bar(ax: Axes, name: str, patch: Rectangle, orientation: str) -> Value:
    (x, y), width, height = patch.get_xy(), patch.get_width(), patch.get_height()
    upright = orientation == "vertical"
    end = (x + width / 2, y + height) if upright else (x + width, y + height / 2)
    size = height if upright else width
    axis, value = (ax.yaxis, ax.xaxis)[:: 1 if upright else -1]
    place = _at(value, end[0] if upright else end[1])
    text = " · ".join(filter(None, [name, place, _at(axis, size, _interval(ax, *end, None))]))
    return Value(ax, (x, y), (x + width, y + height), text)


def _of_image(ax: Axes, cells: Any) -> Iterator[Value]:
    if cells.ndim == 2 and cells.size <= MOST:
        for (row, column), value in np.ndenumerate(cells):
            if value == value:
                text = f"{_at(ax.yaxis, row)} · {_at(ax.xaxis, column)} · {_number(value)}"
                yield Value(ax, (column - 0.5, row - 0.5), (column + 0.5, row + 0.5), text)


def _said(ax: Axes, name: str, x: float, y: float, color: Any) -> str:
    low_high = _interval(ax, x, y, color)
    across = low_high if low_high and low_high[0] == "x" else None
    upright = low_high if low_high and low_high[0] == "y" else None
    return " · ".join(filter(None, [name, _at(ax.xaxis, x, across), _at(ax.yaxis, y, upright)]))


def _interval(ax: Axes, x: float, y: float, color: Any) -> tuple[str, float, float] | None:
    """The ends of a line through a mark, or of a band of its colour around it, and along which axis they lie."""
    for drawn in ax.collections:
        if isinstance(drawn, FillBetweenPolyCollection):
            if color is None or not np.allclose(_rgb(drawn), to_rgb(color), atol=0.01):
                continue
            for path in drawn.get_paths():
                corners = np.asarray(path.vertices, dtype=float)
                at = corners[np.isclose(corners[:, 0], x), 1]
                if len(at) > 1 and at.min() - 1e-9 <= y <= at.max() + 1e-9:
                    return "y", float(at.min()), float(at.max())
        elif isinstance(drawn, LineCollection):
            for segment in drawn.get_segments():
                (x0, y0), (x1, y1) = segment[0], segment[-1]
                if np.isclose([x0, x1], x).all() and min(y0, y1) - 1e-9 <= y <= max(y0, y1) + 1e-9 and y0 != y1:
                    return "y", float(min(y0, y1)), float(max(y0, y1))
                if np.isclose([y0, y1], y).all() and min(x0, x1) - 1e-9 <= x <= max(x0, x1) + 1e-9 and x0 != x1:
                    return "x", float(min(x0, x1)), float(max(x0, x1))
    return None


def _rgb(drawn: Any) -> tuple[float, float, float]:
    return to_rgb(drawn.get_facecolor()[0])


def _name(artist: Any) -> str:
    """What a legend calls it; marks that the legend leaves out are named behind an underscore."""
    label = str(artist.get_label() or "")
    return "" if label.startswith("_child") or label.startswith("_container") else label.lstrip("_").replace("_", " ")


def _at(axis: Axis, value: float, interval: tuple[str, float, float] | None = None) -> str:
    """A place on an axis in words: the text of its tick where ticks are names, else the axis' label and the number."""
    label = " ".join(axis.get_label().get_text().split())
    formatter, locator = axis.get_major_formatter(), axis.get_major_locator()
    if isinstance(locator, FixedLocator) and len(places := np.asarray(locator(), dtype=float)):
        texts = [" ".join(text.split()) for text in formatter.format_ticks(places.tolist())]
        within = np.diff(np.sort(places)).min() / 2 + 1e-9 if len(places) > 1 else np.inf
        nearest = int(np.abs(places - value).argmin())
        named = texts[nearest] and not all(map(_is_number, texts))
        if named and abs(places[nearest] - value) <= within:
            return f"{label}: {texts[nearest]}" if label else texts[nearest]
    times = _times(formatter)
    said = _number(times * value)
    if interval is not None:
        said += f" [{_number(times * interval[1])}, {_number(times * interval[2])}]"
    return f"{label}: {said}" if label else said


def _times(formatter: Any) -> float:
    """By what an axis multiplies what it prints: 100 where it shows shares in percent."""
    try:
        return 100.0 if isinstance(formatter, FuncFormatter) and float(formatter(1.0, 0)) == 100 else 1.0
    except ValueError:
        return 1.0


def _is_number(text: str) -> bool:
    return not text or text.replace("−", "-").replace(".", "", 1).lstrip("-").isdecimal()


def _number(value: float) -> str:
    return f"{float(value):.4g}".replace("-", "−")


def _is_shown(value: Value) -> bool:
    ends = np.asarray([value.low, value.high], dtype=float)
    if not np.isfinite(ends).all():
        return False
    box = value.ax.bbox
    (x0, y0), (x1, y1) = value.ax.transData.transform(ends)
    room = 2.0
    return bool(
        box.x0 - room <= max(x0, x1)
        and min(x0, x1) <= box.x1 + room
        and box.y0 - room <= max(y0, y1)
        and min(y0, y1) <= box.y1 + room
    )


def _shape(figure: Figure, value: Value) -> str:
    """A circle on a mark, a rectangle on a bar or a cell, in points from the upper left."""
    scale, height = 72 / figure.dpi, 72 * figure.get_figheight()
    (x0, y0), (x1, y1) = scale * value.ax.transData.transform([value.low, value.high])
    text = escape(value.text, quote=True)
    if (x0, y0) == (x1, y1):
        return f'<circle cx="{x0:.1f}" cy="{height - y0:.1f}" r="{_REACH:g}" data-value="{text}"/>'
    left, top = min(x0, x1), height - max(y0, y1)
    box = f'x="{left:.1f}" y="{top:.1f}" width="{abs(x1 - x0):.1f}" height="{max(abs(y1 - y0), _REACH):.1f}"'
    return f'<rect {box} data-value="{text}"/>'
