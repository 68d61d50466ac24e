"""Figures of commands: axes of their own in the house style, which need no display."""

from __future__ import annotations

from typing import Any


def axis(size: tuple[float, float] | None = None) -> Any:
    """The axis of a new figure, ``size`` inches wide and high."""
    from matplotlib.figure import Figure

    from safecircuits.plots.style import COLUMN, styled

    return styled(lambda: Figure(figsize=size or COLUMN).subplots())()
