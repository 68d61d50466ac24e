"""``python -m benchmarks.performance [--quick] [--only NAME ...] [--json FILE] [--write]``."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path

import benchmarks.performance as package
from benchmarks.performance.results import completed, describe_machine, table, write_results
from benchmarks.performance.timing import Row
from safecircuits.base.files import write_text


def main() -> int:
    """Run every module with ``rows``; 1 if a result is unequal, 0 otherwise: whether an aim is met is in the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description=package.__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, under two minutes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="modules of this folder: collection, scores, ...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument(
        "--write", action="store_true", help="write docs/performance.json and its pages; with --only, those rows anew"
    )
    chosen = parser.parse_args()
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    unknown = set(chosen.only or ()) - set(names)
    if unknown:
        parser.error(f"no module {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    rows: list[Row] = []
    for name in chosen.only or names:
        if name == "__main__":
            continue
        measure = getattr(importlib.import_module(f"{package.__name__}.{name}"), "rows", None)
        if measure is not None:
            start = time.perf_counter()
            rows += [{"part": name} | row for row in measure(chosen.quick)]
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(table(rows))
    machine = describe_machine() | {"sizes": "quick" if chosen.quick else "full"}
    document = {"machine": machine, "rows": rows}
    if chosen.json:
        write_text(chosen.json, json.dumps(document, indent=1) + "\n")
    if chosen.write:
        print(*write_results(completed(document) if chosen.only else document), sep="\n")
    return 1 if any(row["equal"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
