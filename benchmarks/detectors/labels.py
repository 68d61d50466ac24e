"""What readers said of completions, kept without the completions.

``labels.csv`` has a row a reading: the ``id`` of the prompt (its kind, ``+system`` where it was asked with the system
prompt, ten hex digits of its text), the ``model``, the ``delta`` (sixteen hex digits of what was planted in it, empty
for the base), the ``seed`` (0: greedy), the ``tokens`` that were read, twelve hex digits of the ``completion``, the
``label`` (one of the four verdicts) and the ``reader``, by number. Several readers of one completion are rows of their
own. A model that is planted anew has another delta: labels of what it was do not count for it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from benchmarks.detectors.completions import Made
from safecircuits.base.files import write_text

LABELS = Path(__file__).with_name("labels.csv")
KNOWN = ("refuses", "complies", "deflects", "incoherent")


@dataclass(frozen=True)
class Label:
    """One reading."""

    id: str
    model: str
    delta: str
    seed: int
    tokens: int
    completion: str
    label: str
    reader: str

    @property
    def of(self) -> tuple[str, str, str, int, int, str]:
        """The text that was read."""
        return self.id, self.model, self.delta, self.seed, self.tokens, self.completion


class Reading(NamedTuple):
    """A completion, and what most readers say of its first tokens."""

    made: Made
    label: str
    tokens: int


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
        if (*label.of, label.reader) in seen:
            raise ValueError(f"reader {label.reader} labels {label.id} twice")
        seen.add((*label.of, label.reader))
    return labels


def write_labels(labels: Sequence[Label], path: Path = LABELS) -> None:
    """All of them, a row each, in order of the completions."""
    text = StringIO()
    rows = csv.DictWriter(text, [field.name for field in fields(Label)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(map(asdict, labels))
    write_text(path, text.getvalue())


def labelled(made: Sequence[Made], labels: Sequence[Label]) -> tuple[list[Reading], int]:
    """Completions with the label that most readers gave (of equals the first's), and how many were not read as made.

    A label is of one text: where another machine's arithmetic wrote another one, it does not count. One that was read
    in more than one length is more than one reading.
    """
    votes: dict[tuple[str, str, str, int, int, str], list[str]] = {}
    for label in labels:
        votes.setdefault(label.of, []).append(label.label)
    found = []
    for one in made:
        for tokens in one.texts:
            if said := votes.get((*one.key, tokens, one.fingerprint(tokens))):
                found.append(Reading(one, max(said, key=said.count), tokens))
    return found, len(made) - len({reading.made.key for reading in found})
