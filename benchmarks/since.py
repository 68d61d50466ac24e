"""What the library does otherwise since a page's numbers were measured. The page says it until it is measured again."""

from __future__ import annotations

from typing import Literal

Topic = Literal["units", "counts", "rates", "ranges", "prompts"]

CHANGES: dict[Topic, tuple[str, str]] = {
    "units": (
        "2026-11-29",
        "unit scores leave out the positions that every prompt begins with, and a share of units is a share of neurons "
        'and of heads; `count_beginning=True` with `share_of="pooled"` is what was measured here',
    ),
    "counts": (
        "2026-11-29",
        "counts before and after are compared by exact tests, corrected for the block or layer having been chosen, and "
        "the search for α stops where a tenth of the answers are no language to the unscaled model",
    ),
    "ranges": (
        "2026-11-30",
        "an onset is a gap beyond noise that rises before half of the largest gap is reached, and decision layers are "
        "those in which the share grows faster than in most, and not those between two thresholds",
    ),
    "prompts": (
        "2026-11-30",
        "no prompt of an embedded model on which layers are found measures an arm: here 100 of the 150 that did were "
        "also those of the gap (`--malicious`, `--evaluation`)",
    ),
    "rates": ("2026-11-29", "intervals of rates over seeds are Wilson's and stay within 0 and 100 %"),
}
"""By topic: the day of the change and what is so since."""


def changed_since(date: str, *topics: Topic) -> str:
    """A paragraph on what changed after ``date`` (ISO), or nothing.

    Example:
        >>> changed_since("2026-12-24", "rates")
        ''
    """
    changed = [what for topic in topics for day, what in [CHANGES[topic]] if date < day]
    if not changed:
        return ""
    return f"*Measured on {date}. Since then {'; '.join(changed)}. The numbers are those of that day.*"
