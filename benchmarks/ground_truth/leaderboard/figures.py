"""The leaderboard's figures: what refusal is left at what cost, and where the three objects meet."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context

from benchmarks.ground_truth.leaderboard.registry import OBJECTS, Object
from benchmarks.ground_truth.leaderboard.standing import Interval, interval, members, pairs_of, standings
from safecircuits.plots.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGES = {"organisms": "leaderboard", "smollm2": "leaderboard_real"}
"""What the page of each family is called, and its figures begin with."""

DRAWN = 5
"""Methods of an object that have a line: those of largest area over random."""

FLOOR = 1e-5
"""Nats, below which a KL is drawn as this."""

TITLES = {"block": "Blocks", "units": "Units", "direction": "Directions"}
_COLORS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY)


def names(results: dict[str, Any]) -> dict[str, str]:
    """Where each figure goes beside the page."""
    page = PAGES[results["family"]]
    return {kind: f"assets/{page}_{kind}.svg" for kind in ("objects", "curves")}


def figures(results: dict[str, Any]) -> dict[str, str]:
    """Each figure as SVG, by its place."""
    drawn: dict[str, Callable[[Figure], None]] = {"objects": lambda f: _dots(f.subplots(), pairs_of(results))}
    if curves_of(results):
        drawn["curves"] = lambda f: _curves(f, results)
    sizes = {"objects": (5.6, 2.6), "curves": (7.4, 3.4)}
    return {names(results)[kind]: _svg(draw, sizes[kind]) for kind, draw in drawn.items()}


def _svg(draw: Callable[[Figure], None], size: tuple[float, float]) -> str:
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "leaderboard"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


Curve = list[tuple[float, Interval]]
"""First-token KL on ordinary prompts, and the share of refusal that is left with its interval; one point a size."""


def curves_of(results: dict[str, Any]) -> dict[Object, dict[str, Curve]]:
    """Of each object, method by method, means over the judged models on which it found something; best first."""
    found: dict[Object, dict[str, Curve]] = {}
    for kind in OBJECTS:
        rows = [row for row in standings(results, kind, "judged") if row.judged == row.n and row.nothing < row.n]
        ours = sorted((r for r in rows if r.localizer.source != "control"), key=lambda r: -r.above[0])[:DRAWN]
        controls = [row for row in rows if row.localizer.name in ("any block", "random", "random direction")]
        curves = {row.localizer.name: _curve(results, row.localizer.name) for row in (*ours, *controls)}
        if curves:
            found[kind] = curves
    return found


def _curve(results: dict[str, Any], name: str) -> Curve:
    """Sizes that were tried on every one of the models; a block's own size differs, and is one point."""
    there = [m for m in members(results, "judged") if m["cells"][name].get("points")]
    points = [m["cells"][name]["points"] for m in there]
    length = min(map(len, points))
    kl = [[p["kl"] for p in some[:length]] for some in points]
    left = [
        [p["refused"] / m["intact"]["refused"] for p in some[:length]] for m, some in zip(there, points, strict=True)
    ]
    return list(zip(np.mean(kl, axis=0).tolist(), map(interval, np.transpose(left).tolist()), strict=True))


@styled
def _curves(figure: Figure, results: dict[str, Any]) -> None:
    found = curves_of(results)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for ax, (kind, curves) in zip(panels, found.items(), strict=True):
        for (name, curve), color in zip(curves.items(), (*_COLORS, MUTED), strict=False):
            control = name in list(curves)[DRAWN:] or name in ("any block", "random", "random direction")
            x, left = [max(kl, FLOOR) for kl, _ in curve], 100 * np.array([left for _, left in curve])
            ends = np.abs(left[:, 1:] - left[:, :1]).T
            style: dict[str, Any] = {"fmt": "--o" if control else "-o", "color": MUTED if control else color}
            ax.errorbar(x, left[:, 0], ends, **style, markersize=3.5, elinewidth=0.6, label=name)
        ax.axvline(results["rules"]["kl"], color=MUTED, linestyle=":", linewidth=1)
        ax.set_xscale("log")
        ax.set_title(TITLES[kind])
        ax.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.28))
    panels[0].set_ylabel("refusal left (%)")
    panels[len(panels) // 2].set_xlabel("first-token KL on ordinary prompts (nats)")


@styled
def _dots(ax: Axes, pairs: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    for row, of in enumerate(pairs.values()):
        ratios = [p["over_chance"] for p in of]
        ax.plot(ratios, [row] * len(ratios), "o", color=VERMILLION, alpha=0.5, markersize=4)
        ax.plot([sum(ratios) / len(ratios)], [row], "|", color=INK, markersize=14)
    ax.axvline(1, color=MUTED, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(pairs)), [f"{a} and {b}" for a, b in pairs])
    ax.set_xlabel("units in common, times chance\n(dotted: chance; bar: mean over models)")
    ax.invert_yaxis()
