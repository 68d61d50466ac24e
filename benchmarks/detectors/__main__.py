"""How well each detector agrees with those who read the completions: precision, recall and κ, with 95 % intervals.

    python -m benchmarks.detectors.completions --data FOLDER --out completions.jsonl
    python -m benchmarks.detectors.sheet completions.jsonl --out sheet.csv
    python -m benchmarks.detectors.sheet completions.jsonl --take sheet.csv --reader 2
    python -m benchmarks.detectors completions.jsonl

Writes ``docs/detectors.json`` (counts, no texts) and the page that shows it, ``docs/detectors.md``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from benchmarks.detectors import robustness
from benchmarks.detectors.agreement import measure, read_in, readers
from benchmarks.detectors.completions import LIMITS, read
from benchmarks.detectors.labels import labelled, read_labels
from benchmarks.detectors.page import render

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("completions", type=Path, nargs="*", help="none: renders the page again")
    given = parser.parse_args()
    if given.completions:
        made = [one for path in given.completions for one in read(path)]
        labels = read_labels()
        readings, strange = labelled(made, labels)
        print(f"{len(readings)} readings, {strange} completions without: {dict(Counter(r.label for r in readings))}")
        if not readings:
            raise SystemExit("no completion has a label: lay them out with python -m benchmarks.detectors.sheet")
        results = measure(readings) | readers(labels) | {"robustness": robustness.measure(read_in(readings, LIMITS[0]))}
        (DOCS / "detectors.json").write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")
    results = json.loads((DOCS / "detectors.json").read_text(encoding="utf-8"))
    page = render(results)
    (DOCS / "detectors.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
