"""The gap beside those between harmless sets, which a gap of harm has to beat; the same in both demos."""

from __future__ import annotations

from collections.abc import Callable

from safecircuits.layers.comparison import GapComparison
from safecircuits.papers.part import Part, S


def gap_controls(compare: Callable[[S], GapComparison]) -> Part[S, GapComparison]:
    """The part that keeps what ``compare`` finds, and its table."""
    part: Part[S, GapComparison] = Part(
        "gap_controls",
        GapComparison,
        compare,
        says="gaps between harmless sets",
        tables=lambda study: {"gap_controls": study[part].to_frame()},
    )
    return part


def grown(found: GapComparison, base: str) -> str:
    """In how many layers the gap has grown by more than the controls' gaps have."""
    n_layers = len(found.gaps[base].gap_deg)
    return f"It has grown by more than gaps between harmless sets in {len(found.opened(base))} of {n_layers} layers."
