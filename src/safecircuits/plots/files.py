"""A figure as files: for papers (PDF, PNG) and for pages that are explored (SVG)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecircuits.base.files import replacing, write_text
from safecircuits.plots.style import RC
from safecircuits.plots.values import svg_with_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 300

_DATED = {"svg": "Date", "pdf": "CreationDate", "png": None}
"""Kinds of file, and what says in each when it was made."""


def write_figure(figure: Figure, path_of: Callable[[str], Path]) -> list[Path]:
    """Write a figure in all kinds; the same figure is the same files.

    Args:
        path_of: the path of each kind, such as ``"svg"``.
    """
    from matplotlib import rc_context

    paths = []
    with rc_context(RC):
        for kind, dated in _DATED.items():
            path = path_of(kind)
            metadata: Any = {dated: None} if dated else None
            if kind == "svg":
                write_text(path, svg_with_values(figure, dpi=DPI, metadata=metadata))
            else:
                with replacing(path) as partial:
                    figure.savefig(partial, format=kind, dpi=DPI, metadata=metadata)
            paths.append(path)
    return paths
