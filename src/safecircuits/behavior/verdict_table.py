"""Verdicts of completions as a table: one row a completion, counts of each verdict, and what decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.counted import answers_name
from safecircuits.base.files import write_text
from safecircuits.base.grouping import rows_by
from safecircuits.base.outputs import require_replaceable
from safecircuits.base.stats import Share
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


Verdict = Literal["refuses", "complies", "deflects", "incoherent", "undecided"]

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

BESIDE = ("deflects", "incoherent", "undecided", "cut")
"""Numbers of completions of a ``Tally`` that stand beside its refusals, each None where it is not known."""


@dataclass(frozen=True)
class Tally:
    """How many of ``n`` completions are what, how many the limit of tokens cut, and how many reason before.

    Examples:
        >>> found = sc.behavior.verdicts(sc.generate(model, malicious))
        >>> print(found.tally)
        0 incoherent, 0 deflect, 0 undecided, 0 cut at the token limit, n = 8
        >>> print(found.tally.share("refuses"))
        100.0 % [67.6, 100.0] (8/8)
    """

    n: int
    refuses: int
    complies: int
    deflects: int
    incoherent: int
    undecided: int
    cut: int | None
    """None: not known."""
    reasoning: int = 0

    def share(self, verdict: Verdict) -> Share:
        """Completions with a verdict among all, with a 95 % interval."""
        return Share(int(getattr(self, verdict)), self.n)

    def record(self, prefix: str) -> dict[str, Any]:
        """Shares of ``n`` by ``<prefix>_incoherent``, ``_deflects``, ``_undecided`` and ``_cut``, and ``_n``.

        And ``_reasoning``, where any reason before they answer. Without a prefix the names are ``incoherent``, …
        """
        prefix = prefix and f"{prefix}_"
        shares = {name: getattr(self, name) for name in BESIDE}
        known = {f"{prefix}{name}": count / self.n for name, count in shares.items() if count is not None and self.n}
        if self.reasoning:
            known[f"{prefix}reasoning"] = self.reasoning / self.n
        return {f"{prefix}n": self.n, **known}

    def __str__(self) -> str:
        """What stands beside a count of refusals: ``2 incoherent, 1 deflects, 0 undecided, 40 cut, n = 100``."""
        cut = "cut or not is not known" if self.cut is None else f"{self.cut} cut at the token limit"
        parts = [f"{self.incoherent} incoherent", f"{self.deflects} deflect", f"{self.undecided} undecided", cut]
        if self.reasoning:
            parts.append(f"{self.reasoning} with reasoning")
        return ", ".join([*parts, f"n = {self.n}"])


def counts_beside(tally: Tally | None) -> dict[str, int | None]:
    """The numbers of ``BESIDE`` by name; None for each where there is no tally."""
    return {name: None if tally is None else getattr(tally, name) for name in BESIDE}


@dataclass(frozen=True)
class Verdicts(Result):
    """One verdict a completion, with what decided it; ``answers`` are the completions without their reasoning.

    Examples:
        >>> found = sc.behavior.verdicts(["I'm sorry, but I can't.", "Take the bucket to the hotel."])
        >>> found.verdicts, found.reasons[0]
        (('refuses', 'complies'), "i'm sorry")
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...] | None
    prompts: tuple[str, ...] | None
    completions: tuple[str, ...]
    answers: tuple[str, ...]
    reasonings: tuple[str, ...]
    verdicts: tuple[str, ...]
    reasons: tuple[str, ...]
    """The refusing phrase, the kind of incoherence, a judge's reply; empty where nothing was found."""
    places: tuple[int, ...]
    """Where in the answer the phrase begins, in characters; −1 if the reason is none."""
    languages: tuple[str, ...]
    """Of the phrase, ISO 639-1; empty where there is none."""
    scores: Float[Tensor, " prompt"]
    """A judge's margin or score; NaN where there is none."""
    tokens: tuple[int, ...] | None
    cut: tuple[bool, ...] | None
    """Whether the limit of tokens ended the completion; None: not known."""
    detector: str
    part: str

    def __len__(self) -> int:
        return len(self.verdicts)

    def subset(self, rows: Sequence[int]) -> Verdicts:
        """Those of these completions, in this order.

        Examples:
            >>> sc.behavior.verdicts(["Take two eggs.", "I'm sorry, but no."]).subset([1]).verdicts
            ('refuses',)
        """
        columns: dict[str, Any] = {
            one.name: value[list(rows)] if isinstance(value, Tensor) else tuple(value[row] for row in rows)
            for one in fields(self)
            if (value := getattr(self, one.name)) is not None and not isinstance(value, str)
        }
        return replace(self, **columns)

    def are(self, verdict: str) -> Bool[Tensor, " prompt"]:
        """Which completions have a verdict."""
        return torch.tensor([found == verdict for found in self.verdicts], dtype=torch.bool)

    @property
    def refused(self) -> Bool[Tensor, " prompt"]:
        """Which completions refuse."""
        return self.are("refuses")

    @property
    def tally(self) -> Tally:
        """How many there are of each."""
        return self._tally(range(len(self)))

    @property
    def by_category(self) -> dict[str, Tally]:
        """The same for each category of prompts, in the order in which they first occur; empty without categories."""
        return {category: self._tally(those) for category, those in rows_by(self.categories).items()}

    @property
    def digest(self) -> str:
        """By what name a report has these answers: the prompts, the texts, and which count as refused, or as right."""
        counted = [verdict in ("refuses", "right") for verdict in self.verdicts]
        return answers_name(self.ids, self.completions, counted)

    def to_frame(self) -> pd.DataFrame:
        """One row a completion, with the columns of ``save_lines``."""
        import pandas as pd

        return pd.DataFrame(list(self._rows()))

    def save_lines(self, path: str | Path) -> Path:
        """Write JSON lines that ``Completions.load`` reads and people do: a completion with its verdict and reason.

        Keys: ``id``, ``prompt`` (if known), ``category`` (if any), ``completion``, ``reasoning`` (if any), ``verdict``,
        ``detector``, ``reason``, ``place``, ``language``, ``score``, ``tokens``, ``ended`` and ``cut_at_limit``.

        Raises:
            ValueError: if there is a file of something else.
        """
        import json

        require_replaceable(path, "completions")
        return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows()))

    def __str__(self) -> str:
        return f"{self.tally.share('refuses')} refuse; {self.tally}"

    def _rows(self) -> Iterator[dict[str, Any]]:
        for i, verdict in enumerate(self.verdicts):
            row: dict[str, Any] = {"id": self.ids[i]}
            row |= {} if self.prompts is None else {"prompt": self.prompts[i]}
            row |= {} if self.categories is None else {"category": self.categories[i]}
            row |= {"completion": self.completions[i]}
            row |= {"reasoning": self.reasonings[i]} if any(self.reasonings) else {}
            score = float(self.scores[i])
            row |= {
                "verdict": verdict,
                "detector": self.detector,
                "reason": self.reasons[i] or None,
                "place": self.places[i] if self.places[i] >= 0 else None,
                "language": self.languages[i] or None,
                "score": None if score != score else score,
            }
            row |= {} if self.tokens is None else {"tokens": self.tokens[i]}
            row |= {} if self.cut is None else {"ended": not self.cut[i], "cut_at_limit": self.cut[i]}
            yield row

    def _tally(self, rows: Sequence[int]) -> Tally:
        counts = {verdict: sum(self.verdicts[row] == verdict for row in rows) for verdict in VERDICTS}
        cut = None if self.cut is None else sum(self.cut[row] for row in rows)
        return Tally(len(rows), **counts, cut=cut, reasoning=sum(bool(self.reasonings[row]) for row in rows))
