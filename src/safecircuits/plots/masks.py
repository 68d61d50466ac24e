"""The figure of a freeze mask: how much of each layer's neurons and heads stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.patches import Rectangle

from safecircuits.base.record import Record, Recorded, record_of
from safecircuits.plots.style import COLUMN, INK, PAPER, VERMILLION, axes_or_new, cells_by_layer, styled
from safecircuits.plots.units import MAX_PRINTED_LAYERS, SITE_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRONG = 0.6
"""From this shade on, a number is printed in the colour of the paper."""


@styled
def plot_mask(mask: Recorded | Record, *, ax: Axes | None = None) -> Axes:
    """One row a site, one column a layer; a cell's shade is the frozen share of its units, printed in percent.

    Small shares get a visible tint of their own, since masks of one or two percent are common; nothing frozen is blank.
    """
    shares = record_of(mask)
    n_layers = max(map(len, shares.values()))
    if n_layers == 0:
        raise ValueError("the mask freezes nothing and has no model's shape, so there is nothing to draw")
    ax = axes_or_new(ax, (COLUMN[0], 1.3))
    for y, by_layer in enumerate(shares.values()):
        for layer, share in enumerate(by_layer):
            shade = 0.12 + 0.78 * share if share else 0.04
            ax.add_patch(
                Rectangle((layer - 0.47, y - 0.44), 0.94, 0.88, facecolor=VERMILLION, alpha=shade, linewidth=0)
            )
            if n_layers <= MAX_PRINTED_LAYERS and share:
                color = PAPER if shade > STRONG else INK
                ax.text(layer, y, _percent(share), ha="center", va="center_baseline", fontsize=7.5, color=color)
    ax.set_yticks(range(len(shares)), [SITE_NAMES[site] for site in shares])
    ax.set(xlim=(-0.5, n_layers - 0.5), ylim=(len(shares) - 0.5, -0.5), xlabel="layer", title="frozen units (%)")
    return cells_by_layer(ax)


def _percent(share: float) -> str:
    """A share that is neither nothing nor all never prints as 0 or 100."""
    value = 100 * share
    return f"{value:.0f}" if share == 1 or 9.5 <= value < 99.5 else f"{value:.1f}"
