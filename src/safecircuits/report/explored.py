"""Answers as a page holds them: one table of texts that all counts share; what shows them sets them as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from safecircuits.behavior.detectors import DETECTORS, get_detector
from safecircuits.report.answers import View
from safecircuits.report.scripts import as_data

LARGEST = 1_500_000
"""Characters of answers in one page; counts beyond have their answers in the files of the run alone."""


@dataclass(frozen=True)
class Explored:
    """The answers of a page, and which counts lead to them."""

    keys: frozenset[str]
    data: Markup
    withheld: int
    """Sets of answers to harmful prompts whose texts are left out."""
    left_out: int
    """Sets of answers that are left out for their size."""
    n: int
    """Answers behind all the counts that are shown."""


def explored(views: Sequence[View], *, texts: bool) -> Explored | None:
    """The answers of a page; None if there are none.

    Args:
        texts: whether prompts and answers of harmful sets are shown, or only what was found of them.
    """
    if not views:
        return None
    data, shown, size = _Interned(), [], 0
    for view in views:
        rows = data.view(view, texts=texts or view.harmless)
        size += len(json.dumps(rows, ensure_ascii=False))
        if size + data.size > LARGEST:
            break
        shown.append(rows)
    document = {"detectors": list(DETECTORS), "prompts": data.prompts, "texts": data.texts, "views": shown}
    return Explored(
        frozenset(view["key"] for view in shown),
        as_data(document),
        0 if texts else sum(not view.harmless for view in views[: len(shown)]),
        len(views) - len(shown),
        sum(len(view["rows"]) for view in shown),
    )


@dataclass
class _Interned:
    """Prompts and texts, each once."""

    prompts: list[list[str | None]] = field(default_factory=list)
    texts: list[list[Any]] = field(default_factory=list)
    size: int = 0
    _places: dict[tuple[str, ...], int] = field(default_factory=dict)

    def view(self, view: View, *, texts: bool) -> dict[str, Any]:
        """A count's answers: prompt, text, verdict, reason, place, score, tokens and cut of each, by index."""
        found, rows = view.found, []
        for i, verdict in enumerate(found.verdicts):
            asked = "" if found.prompts is None else found.prompts[i]
            kind = "" if found.categories is None else found.categories[i]
            prompt = self._once("prompt", self.prompts, [found.ids[i], asked if texts else None, kind or None])
            # A judge's reply may say again what it judges; a phrase that refuses may not.
            reason = found.reasons[i] if texts or found.places[i] >= 0 else ""
            score = float(found.scores[i])
            rows.append(
                [
                    prompt,
                    self._text(found.completions[i], found.answers[i], shown=texts),
                    verdict,
                    reason,
                    found.places[i],
                    None if score != score else round(score, 4),
                    None if found.tokens is None else found.tokens[i],
                    None if found.cut is None else int(found.cut[i]),
                ]
            )
        return {
            "key": view.key,
            "label": view.label,
            "set": view.of,
            "detector": found.detector,
            "fold": not view.harmless,
            "rows": rows,
        }

    def _text(self, completion: str, answer: str, *, shown: bool) -> int:
        """A text, and a bit for each known detector that calls it a refusal."""
        if (place := self._places.get(("text", completion, str(shown)))) is not None:
            return place
        says = sum(1 << bit for bit, name in enumerate(DETECTORS) if get_detector(name)(answer))
        return self._once("text", self.texts, [completion if shown else None, says], (completion, str(shown)))

    def _once(self, kind: str, table: list[Any], row: list[Any], name: tuple[str, ...] | None = None) -> int:
        key = (kind, *(name or tuple(map(str, row))))
        if key not in self._places:
            self._places[key] = len(table)
            table.append(row)
            self.size += len(json.dumps(row, ensure_ascii=False)) + 1
        return self._places[key]
