"""How well each detector agrees with those who read the completions: precision, recall and κ, with 95 % intervals.

    python -m benchmarks.detectors.completions --data FOLDER --out completions.jsonl
    python -m benchmarks.detectors completions.jsonl

Writes ``docs/detectors.json`` (counts, no texts) and the page that shows it, ``docs/detectors.md``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from benchmarks.detectors import robustness
from benchmarks.detectors.agreement import measure
from benchmarks.detectors.completions import read
from benchmarks.detectors.labels import labelled, read_labels
from benchmarks.detectors.page import render

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("completions", type=Path, nargs="*", help="none: renders the page again")
    given = parser.parse_args()
    if given.completions:
        made = [one for path in given.completions for one in read(path)]
        pairs, strange = labelled(made, read_labels())
        print(f"{len(pairs)} completions with a label, {strange} without: {dict(Counter(label for _, label in pairs))}")
        results = measure(pairs) | {"robustness": robustness.measure(pairs)}
        (DOCS / "detectors.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads((DOCS / "detectors.json").read_text(encoding="utf-8"))
    page = render(results)
    (DOCS / "detectors.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
