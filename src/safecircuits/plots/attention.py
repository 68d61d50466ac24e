"""Heat map of the last position's attention to the question's tokens, as in the paper's Fig. 4 and 9 to 12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from safecircuits.base.record import Block, Record, Recorded, bounds, record_of
from safecircuits.base.vocabulary import LayerRange
from safecircuits.plots.style import INK, axes_or_new, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def plot_attention(attention: Recorded | Record, *, safety_layers: Block | None = None, ax: Axes | None = None) -> Axes:
    """Rows are layers, the first on top; columns are the question's tokens; darker red is more attention.

    Args:
        safety_layers: a block of layers, 0-indexed and inclusive, whose bounds are drawn as dashed lines: a
            ``LayerRange``, a (first, last) pair, an ``Onset`` or a ``Localization``.

    Raises:
        ValueError: if the block lies outside the model.
    """
    record = record_of(attention)
    values = np.asarray(record["values"])
    n_layers, n_tokens = values.shape
    block = bounds(safety_layers)
    first, last = LayerRange.of(block, n_layers) if block else (0, -1)
    ax = axes_or_new(ax, size=(1.9 + 0.36 * n_tokens, 1.5 + 0.13 * n_layers))
    relative = record["normalize"] == "minmax"
    image = ax.imshow(values, cmap="Reds", aspect="auto", vmin=0.0, vmax=1.0 if relative else None)
    labels = [token.replace("\n", "\\n") for token in record["tokens"]]
    ax.set_xticks(range(n_tokens), labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.yaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("layer")
    if block:
        for edge in (first - 0.5, last + 0.5):
            ax.axhline(edge, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), clip_on=False, label="_bound")
        ax.set_xlabel(f"dashed: safety layers [{first}, {last}]")
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.set_label("attention, min–max by layer" if relative else "attention probability")
    return ax


@styled
def attention_panels(maps: Sequence[Recorded | Record], *, safety_layers: Block | None = None) -> Figure:
    """Heat maps of several prompts side by side, a harmful and a harmless one as in the paper, each under its prompt.

    Raises:
        ValueError: without a map, or as ``plot_attention`` does.
    """
    if not maps:
        raise ValueError("no attention maps to plot")
    records = [record_of(found) for found in maps]
    widths = [1.9 + 0.36 * len(found["tokens"]) for found in records]
    height = 1.7 + 0.13 * max(len(found["values"]) for found in records)
    figure = Figure(figsize=(sum(widths), height))
    for ax, found in zip(figure.subplots(1, len(maps), squeeze=False, width_ratios=widths)[0], records, strict=True):
        plot_attention(found, safety_layers=safety_layers, ax=ax)
        ax.set_title(found["prompt"], loc="left", wrap=True)
    return figure
