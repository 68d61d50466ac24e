"""Simulates nothing happening, and known rates, many times over, and counts how often each interval and test is right.

    python -m benchmarks.statistics

Writes ``docs/intervals.json`` and the page that shows it, ``docs/intervals.md``. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.statistics.page import render
from benchmarks.statistics.simulate import simulate

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="experiments for each row")
    parser.add_argument("--render", action="store_true", help="only render the page again")
    given = parser.parse_args()
    if not given.render:
        (DOCS / "intervals.json").write_text(json.dumps(simulate(given.draws), indent=1) + "\n", encoding="utf-8")
    page = render(json.loads((DOCS / "intervals.json").read_text(encoding="utf-8")))
    (DOCS / "intervals.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
