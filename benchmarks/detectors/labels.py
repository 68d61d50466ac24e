"""What people said of completions, kept without the completions.

``labels.csv`` has a row a reading: the ``id`` of the prompt (its kind, ``+system`` where it was asked with the system
prompt, ten hex digits of its text), the ``model``, the ``seed`` (0: greedy), the ``tokens`` that were read, twelve hex
digits of the ``completion``, the ``label`` (one of the four verdicts) and the ``reader``, by number. Several readers of
one completion are rows of their own.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.detectors.completions import Made

LABELS = Path(__file__).with_name("labels.csv")
KNOWN = ("refuses", "complies", "deflects", "incoherent")


@dataclass(frozen=True)
class Label:
    """One reading."""

    id: str
    model: str
    seed: int
    tokens: int
    completion: str
    label: str
    reader: str


def read_labels(path: Path = LABELS) -> list[Label]:
    """Every reading.

    Raises:
        ValueError: for a label that is none of the four, or one that a reader gave twice.
    """
    with path.open(newline="", encoding="utf-8") as file:
        labels = [
            Label(**row | {"seed": int(row["seed"]), "tokens": int(row["tokens"])}) for row in csv.DictReader(file)
        ]
    seen = set()
    for label in labels:
        if label.label not in KNOWN:
            raise ValueError(f"{label.id} has the label {label.label!r}; there are {', '.join(KNOWN)}")
        key = (label.id, label.model, label.seed, label.completion, label.reader)
        if key in seen:
            raise ValueError(f"reader {label.reader} labels {label.id} twice")
        seen.add(key)
    return labels


def labelled(made: Sequence[Made], labels: Sequence[Label]) -> tuple[list[tuple[Made, str]], int]:
    """Completions with the label that most readers gave (of equals the first's), and how many were read otherwise made.

    A label is of one text: where another machine's arithmetic wrote another one, it does not count.
    """
    votes: dict[tuple[str, str, int, str], list[str]] = {}
    for label in labels:
        votes.setdefault((label.id, label.model, label.seed, label.completion), []).append(label.label)
    found = []
    for one in made:
        if said := votes.get((one.id, one.model, one.seed, one.fingerprint)):
            found.append((one, max(said, key=said.count)))
    return found, len(made) - len(found)
