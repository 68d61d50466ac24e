"""Completions as a sheet that a person reads and labels, and what was said taken back from it.

    python -m benchmarks.detectors.sheet completions.jsonl --out sheet.csv --tokens 64
    python -m benchmarks.detectors.sheet completions.jsonl --take sheet.csv --reader 2

The sheet has a row a text that this reader has not labelled: prompt and answer, in an order by chance, without the
model's name or what a detector says, so that neither sways who reads. Texts that are the same are one row. Fill
``label`` with refuses, complies, deflects or incoherent, or their first letters; rows left empty are left out. The
sheet holds harmful text: it is not written into this repository, and what is taken back from it are labels alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from benchmarks.detectors.completions import LIMITS, Made, read
from benchmarks.detectors.labels import KNOWN, LABELS, Label, read_labels, write_labels
from safecircuits.base.files import write_text

COLUMNS = ("row", "asked", "prompt", "answer", "ends", "label")
ROOT = Path(__file__).parents[2]


def row_id(one: Made, tokens: int) -> str:
    """What a row is called: twelve hex digits of what was asked and of the text, whoever wrote it."""
    return hashlib.sha256(f"{one.id} {one.seed} {tokens} {one.fingerprint(tokens)}".encode()).hexdigest()[:12]


def sheet(
    made: Sequence[Made], labels: Sequence[Label], reader: str, tokens: int, seed: int = 0
) -> list[dict[str, str]]:
    """The rows that a reader has still to label, shuffled."""
    done = {label.of for label in labels if label.reader == reader}
    rows = {}
    for one in made:
        if tokens in one.texts and (*one.key, tokens, one.fingerprint(tokens)) not in done:
            asked = "with system prompt" if "+system" in one.id else "alone"
            ends = "ends" if one.ended(tokens) else f"goes on after {tokens} tokens"
            rows[row_id(one, tokens)] = (one.prompt, one.texts[tokens], asked, ends)
    order = sorted(rows)
    random.Random(seed).shuffle(order)
    return [
        {"row": name, "asked": asked, "prompt": prompt, "answer": text, "ends": ends, "label": ""}
        for name in order
        for prompt, text, asked, ends in [rows[name]]
    ]


def taken(
    rows: Sequence[dict[str, str]], made: Sequence[Made], labels: Sequence[Label], reader: str, tokens: int
) -> list[Label]:
    """The labels of a sheet, one for each completion whose text was read.

    Raises:
        ValueError: for a label that is none of the four, a row of other completions, and one that this reader has
            labelled otherwise.
    """
    before = {label.of: label.label for label in labels if label.reader == reader}
    by_row: dict[str, list[Made]] = {}
    for one in made:
        if tokens in one.texts:
            by_row.setdefault(row_id(one, tokens), []).append(one)
    found = []
    for row in rows:
        if not (said := row["label"].strip().lower()):
            continue
        label = next((known for known in KNOWN if said in (known, known[0])), None)
        if label is None:
            raise ValueError(f"row {row['row']} has the label {row['label']!r}; there are {', '.join(KNOWN)}")
        if row["row"] not in by_row:
            raise ValueError(
                f"row {row['row']} is of no completion in these files at {tokens} tokens: give those that the sheet "
                "was made of, and its --tokens"
            )
        for one in by_row[row["row"]]:
            new = Label(*one.key, tokens, one.fingerprint(tokens), label, reader)
            if (known := before.get(new.of, label)) != label:
                raise ValueError(f"reader {reader} said {known} of row {row['row']} before, and now {label}")
            if new.of not in before:
                found.append(new)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("completions", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="the sheet to write, outside this repository")
    parser.add_argument("--take", type=Path, help="a sheet whose labels are taken")
    parser.add_argument("--tokens", type=int, choices=LIMITS, default=LIMITS[-1], help="how much of each is read")
    parser.add_argument("--reader", default="1", help="by number; another reader's sheet has what the first has read")
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows")
    parser.add_argument("--labels", type=Path, default=LABELS)
    given = parser.parse_args(argv)
    if (given.out is None) == (given.take is None):
        parser.error("give --out to lay out a sheet, or --take to read one")
    made = [one for path in given.completions for one in read(path)]
    labels = read_labels(given.labels)
    if given.out is not None:
        if given.out.resolve().is_relative_to(ROOT):
            parser.error(f"{given.out} is in this repository, and the sheet holds harmful text: write it elsewhere")
        rows = sheet(made, labels, given.reader, given.tokens, given.seed)
        text = StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_text(given.out, text.getvalue())
        print(f"{len(rows)} texts to label in {given.out}")
        return
    with given.take.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if missing := {"row", "label"} - set(rows[0] if rows else {}):
        parser.error(f"{given.take} has no column {min(missing)!r}: it is no sheet of this command")
    try:
        new = taken(rows, made, labels, given.reader, given.tokens)
    except ValueError as error:
        parser.error(str(error))
    write_labels([*labels, *new], given.labels)
    empty = sum(not row["label"].strip() for row in rows)
    print(f"{len(new)} labels added to {given.labels}, {empty} rows are still empty")


if __name__ == "__main__":
    main()
