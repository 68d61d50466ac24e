"""The lines with which a report opens: what was run on which model, what was supported, and the largest caveat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from safecircuits.base.record import Record
from safecircuits.base.text import percent
from safecircuits.organism.catalog import n_parameters
from safecircuits.organism.recipe import STAGES
from safecircuits.report.answers import View

WORDS = {"yes": "supported", "no": "not supported", "unclear": "inconclusive", "inconclusive": "inconclusive"}
"""What is said of a conclusion that ``shows`` this: open numbers, and nothing to show, are both inconclusive."""

CAVEAT = "caveat: "
"""What a finding begins with that is to be held against the others."""

STRANGE, CUT, FEW = 0.1, 0.5, 100
"""Shares of incoherent and of cut answers from which on, and a number of prompts below which, counts mislead."""

ROOM = 360
"""Characters of findings that an opening has room for."""


def embedded(source: object) -> str:
    """The stage of the embedded organism that a source names; empty for any other model."""
    name = str(source or "").removeprefix("organism:")
    return name if name in STAGES else ""


def counted(conclusions: Iterable[Record]) -> dict[str, int]:
    """How many conclusions there are of each word."""
    found = Counter(WORDS.get(str(one.get("shows")), "inconclusive") for one in conclusions)
    return {word: found[word] for word in dict.fromkeys(WORDS.values())}


def tally(conclusions: Iterable[Record]) -> str:
    """``7 supported, 1 not supported, 4 inconclusive``."""
    return ", ".join(f"{number} {word}" for word, number in counted(conclusions).items())


def opening(
    what: str,
    source: object,
    conclusions: Sequence[Record],
    views: Sequence[View],
    *,
    seeds: int | None = None,
    findings: Sequence[str] = (),
    doubts: Sequence[str] = (),
) -> list[str]:
    """The opening of a page, a sentence a line.

    Args:
        what: was run, as ``safecircuits study ssah``.
        source: of the model.
        views: the answers that its numbers count.
        seeds: of what was trained; None if nothing was.
        findings: in words; where nothing was claimed, the first are said, and how many more there are.
        doubts: what the results themselves hold against what they found, the largest first.
    """
    stage = embedded(source)
    named = any(f"“{name}”" in what for name in (source, str(source).removeprefix("organism:")))
    model = f"on “{source}”" if source and not named else ""
    if stage:
        size = f"{n_parameters(stage) / 1e6:.1f}-million-parameter toy"
        model += f", a {size} of an invented language: a check of the methods, no evidence about large language models"
    lines = [f"{what}{model}." if model.startswith(",") else f"{what} {model}".strip() + "."]
    if conclusions:
        lines.append(f"Of {len(conclusions)} claims {tally(conclusions)}.")
    elif findings:
        said = _first_of(findings)
        more = f" ({len(findings) - len(said)} more below)" if len(findings) > len(said) else ""
        lines.append(f"Found: {'; '.join(one.rstrip('.;') for one in said)}{more}.")
    return [*lines, f"Largest caveat: {caveat(conclusions, views, seeds, doubts)}"]


def _first_of(findings: Sequence[str]) -> list[str]:
    """The first finding, and what fits beside it."""
    said = [findings[0]]
    for one in findings[1:]:
        if sum(map(len, said)) + len(one) > ROOM:
            break
        said.append(one)
    return said


def caveat(conclusions: Sequence[Record], views: Sequence[View], seeds: int | None, doubts: Sequence[str] = ()) -> str:
    """What a reader must hold against the numbers first."""
    judged = [view for view in views if "right" not in view.found.verdicts and "wrong" not in view.found.verdicts]
    first = judged[0].found.tally if judged else None
    if first is not None and first.incoherent >= STRANGE * first.n:
        return f"{percent(first.incoherent / first.n)} of the model's answers as it is are no language."
    if first is not None and first.cut is not None and first.cut >= CUT * first.n:
        share = percent(first.cut / first.n)
        return f"{share} of the model's answers were cut at the token limit, so that later refusals are not counted."
    if doubts:
        return f"{doubts[0]}."
    nothing = sum(str(one.get("shows")) == "inconclusive" for one in conclusions)
    if conclusions and 2 * nothing >= len(conclusions):
        return f"{nothing} of {len(conclusions)} claims could not show here, as there was nothing to lose or to find."
    if seeds is not None and seeds < 3:
        return f"what was trained has {seeds} seed{'s' * (seeds > 1)}, which cannot tell an effect from chance."
    strange = max((one.found.tally.incoherent / len(one.found) for one in judged), default=0.0)
    if strange >= STRANGE:
        return f"of some counts up to {percent(strange)} of the answers are no language, and count as not refused."
    if first is not None and first.n < FEW:
        return f"rates are of {first.n} prompts, so that their intervals are wide."
    if judged:
        return (
            f"refusals are counted by {judged[0].found.detector!r}, and no person has read them: see the answers below."
        )
    return "one model and one set of prompts."
