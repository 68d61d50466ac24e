"""What the library does otherwise since a page's numbers were measured. The page says it until it is measured again."""

from __future__ import annotations

from typing import Literal

Topic = Literal["units", "counts", "rates", "ranges", "prompts"]

CHANGES: dict[Topic, tuple[str, str]] = {
    "units": (
        "2026-11-29",
        "Unit scores leave out the positions that every prompt begins with, and a share of units is taken of neurons "
        'and of heads separately. `count_beginning=True` with `share_of="pooled"` gives what was measured here.',
    ),
    "counts": (
        "2026-11-29",
        "Refusals before and after are compared by exact tests, which allow for the block or layer having been "
        "chosen among several. The search for α stops once a tenth of the answers are incoherent (text that the "
        "unscaled model finds improbable).",
    ),
    "ranges": (
        "2026-11-30",
        "The onset is where a gap beyond noise rises, before half of the largest gap is reached. Decision layers are "
        "those in which the share of the decision grows faster than in most layers; they were those between two "
        "thresholds.",
    ),
    "prompts": (
        "2026-11-30",
        "On embedded models, refusal after fine-tuning is measured on other prompts than those on which layers are "
        "found. Here 100 of the 150 that measured it (`--evaluation`) were also those of the gap (`--malicious`).",
    ),
    "rates": ("2026-11-29", "Intervals of rates over seeds are Wilson's, which stay within 0 and 100 %."),
}
"""By topic: the day of the change and what is so since."""


def changed_since(date: str, *topics: Topic) -> str:
    """A note on what changed after ``date`` (ISO), or nothing.

    Example:
        >>> changed_since("2026-12-24", "rates")
        ''
        >>> print(changed_since("2026-11-28", "rates"))
        **Measured on 2026-11-28, with an earlier version**, and not again since. What the library does differently now:
        <BLANKLINE>
        - Intervals of rates over seeds are Wilson's, which stay within 0 and 100 %.
    """
    changed = [what for topic in topics for day, what in [CHANGES[topic]] if date < day]
    if not changed:
        return ""
    first = (
        f"**Measured on {date}, with an earlier version**, and not again since. What the library does differently now:"
    )
    return "\n".join([first, "", *(f"- {what}" for what in changed)])
