"""What stands beside a count of refusals: of how many answers, which share is no language, which the limit cut.

A count without these misleads: a broken model refuses nothing, and an answer that is cut may refuse in its next word.
Records carry them as ``<set>_n``, ``<set>_incoherent`` and ``<set>_cut`` (``Tally.record``), beside that set's rate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safecircuits.base.record import Record, number
from safecircuits.base.text import NBSP, percent

SET_OF = {
    "malicious_refused": "malicious",
    "over_rejected": "over_rejection",
    "normal_refused": "normal",
    "refused_with_system": "with_system",
    "refused_prefilled": "prefilled",
    "refused": "",
    "answered": "",
}
"""The set that each rate of refusal is counted on, by which its record names what stands beside it."""

ANSWERS_OF = {**SET_OF, "utility": "utility", "task_score": "task"}
"""The set whose answers each rate counts."""

HEADING = "incoherent / cut / n"
"""Of a column with ``Beside.cell``."""
TOLD = "incoherent", "cut", "n"


class Linked(str):
    """The text of a cell that counts answers; ``answers`` is by what name a page has them (``answers_name``)."""

    answers: str

    def __new__(cls, text: str, answers: object) -> Linked:
        made = super().__new__(cls, text)
        made.answers = answers if isinstance(answers, str) else ""
        return made


def answers_name(ids: Sequence[str], texts: Sequence[str], counted: Sequence[bool]) -> str:
    """Ten hex digits that name answers, by the prompts, the texts, and which of them count."""
    text = json.dumps([list(ids), list(texts), list(map(int, counted))])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def linked(text: str, row: Record, rate: str) -> str:
    """A rate of a record as text, from which a page leads to the answers that it counts, where it has them."""
    prefix = ANSWERS_OF.get(rate)
    name = None if prefix is None else row.get(f"{prefix}_answers" if prefix else "answers")
    return Linked(text, name) if name else text


@dataclass(frozen=True)
class Beside:
    """Shares of ``n`` answers, 0 to 1, that are incoherent or were cut at the token limit; None: not known.

    Examples:
        >>> from safecircuits.base.counted import Beside
        >>> str(Beside(n=300, incoherent=0.02, cut=None)).replace("\u00a0", " ")
        '2 % incoherent, cut or not is not known, n = 300'
    """

    n: float | None = None
    incoherent: float | None = None
    cut: float | None = None

    @classmethod
    def of(cls, row: Record, rate: str) -> Beside:
        """What a record says beside one of its rates, ``malicious_refused`` say."""
        return cls(**{name: number(row.get(key)) for name, key in keys(rate).items()})

    def __bool__(self) -> bool:
        return self.n is not None

    def __str__(self) -> str:
        """In words; empty where not even n is known."""
        if self.n is None:
            return ""
        cut = "cut or not is not known" if self.cut is None else f"{percent(self.cut)} cut at the token limit"
        strange = (
            "incoherent or not is not known" if self.incoherent is None else f"{percent(self.incoherent)} incoherent"
        )
        return f"{strange}, {cut}, n{NBSP}={NBSP}{self.n:g}"

    @property
    def cell(self) -> str:
        """Under ``HEADING``: ``2 % / 12 % / 300``."""
        return f"{percent(self.incoherent)} / {percent(self.cut)} / {'–' if self.n is None else f'{self.n:g}'}"


def keys(rate: str) -> dict[str, str]:
    """Under which keys a record has what stands beside a rate; none for a rate that counts no refusals."""
    if rate not in SET_OF:
        return {}
    prefix = SET_OF[rate] and f"{SET_OF[rate]}_"
    return {name: f"{prefix}{name}" for name in TOLD}


def beside(row: Record, rate: str, before: str = " (", after: str = ")") -> str:
    """``" (2 % incoherent, 12 % cut at the token limit, n = 300)"``, to follow a rate; empty where it is not known."""
    said = str(Beside.of(row, rate))
    return f"{before}{said}{after}" if said else ""


def said(row: Record, rate: str) -> str:
    """A rate of a record with what stands beside it: ``98.3 % (0 % incoherent, …, n = 300)``."""
    return f"{percent(number(row.get(rate)))}{beside(row, rate)}"


def at_most(rows: Iterable[Record], rate: str) -> str:
    """Of many counts at once: ``at most 2 % incoherent and 12 % cut at the token limit, n = 300``; empty if unknown."""
    found = [one for row in rows if (one := Beside.of(row, rate))]
    if not found:
        return ""
    shares = {"incoherent": [one.incoherent for one in found], "cut at the token limit": [one.cut for one in found]}
    known = {word: [share for share in every if share is not None] for word, every in shares.items()}
    most = [f"{percent(max(every))} {word}" for word, every in known.items() if every]
    sizes = sorted({one.n for one in found if one.n is not None})
    n = f"n{NBSP}={NBSP}{sizes[0]:g}" + (f" to {sizes[-1]:g}" if len(sizes) > 1 else "")
    return f"at most {' and '.join(most)}, {n}" if most else n


def told(rows: Iterable[Record], rate: str) -> bool:
    """Whether any of the records knows of how many answers the rate is, so that a table has a column for it."""
    return any(Beside.of(row, rate) for row in rows)


def headings(rows: Iterable[Record], rates: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns of a table of rates by ``names``, and behind each that counts refusals what stands beside it."""
    rows = list(rows)
    return [head for rate, name in zip(rates, names, strict=True) for head in (name, *[HEADING] * told(rows, rate))]


def cells(row: Record, rows: Iterable[Record], rates: Sequence[str], written: Sequence[str]) -> list[str]:
    """A row of such a table; ``written`` are its rates as text, ``rows`` all of its records."""
    rows = list(rows)
    return [
        cell
        for rate, text in zip(rates, written, strict=True)
        for cell in (linked(text, row, rate), *[Beside.of(row, rate).cell] * told(rows, rate))
    ]


def mean_beside(rows: Sequence[Record], rates: Iterable[str]) -> dict[str, float]:
    """Of several records of the same sets, the mean of what stands beside their rates, where all of them know it."""
    means = {}
    for rate in rates:
        for key in keys(rate).values():
            values = [value for row in rows if (value := number(row.get(key))) is not None]
            if values and len(values) == len(rows):
                means[key] = sum(values) / len(values)
    return means
