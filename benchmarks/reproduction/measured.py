"""Gather what runs have found: ``python -m benchmarks.reproduction.measured RUN [RUN …]``.

Each RUN is the folder of a complete ``safecircuits study …``, or of a script of ``benchmarks.models``. What it
concludes, and its numbers under the papers' settings and metrics, take the place of what the file had of the same
command and model; other entries stay. The page is then made by ``python -m benchmarks.reproduction.page``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from safecircuits.base.files import write_text
from safecircuits.results.load_record import command_line, load_run

ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "docs/reference/reproduction.json"


def entry_of(folder: str | Path) -> dict[str, Any]:
    """What the page says of one run.

    Raises:
        ValueError: if the folder holds no complete run, or one that concludes nothing and has no published numbers.
    """
    folder = Path(folder)
    record = load_run(folder)
    entry = {
        "run": record["command"],
        "model": record["arguments"].get("model") or record["arguments"]["source"],
        "command": command_line(record) if record["command"].startswith("study ") else record["command"],
        "provenance": record["provenance"],
        "inputs": record["inputs"],
        "conclusions": _conclusions(folder / "tables" / "conclusions.csv"),
        "numbers": _numbers(folder / "tables" / "published.csv"),
    }
    if not entry["conclusions"] and not entry["numbers"]:
        raise ValueError(f"{str(folder)!r} is a run of {record['command']!r}, which says nothing about the papers")
    return entry


def _conclusions(path: Path) -> list[dict[str, str]]:
    """What a study concludes, from its table."""
    if not path.is_file():
        return []
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    return frame[["shows", "effect", "paper", "text"]].to_dict("records")


def _numbers(path: Path) -> list[dict[str, str]]:
    """Measured numbers of a table of published ones."""
    if not path.is_file():
        return []
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = frame[(frame["measured"] != "") & (frame["table"] != "")]
    return rows[["paper", "table", "setting", "metric", "measured"]].to_dict("records")


def merged(before: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries by run and model, the later of two."""
    found = {(entry["run"], entry["model"]): entry for entry in (*before, *entries)}
    return [found[key] for key in sorted(found)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduction.measured", description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of complete runs")
    parser.add_argument("--out", default=str(NUMBERS), help="the JSON file to add to")
    options = parser.parse_args(argv)
    out = Path(options.out)
    before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    entries = merged(before, [entry_of(run) for run in options.runs])
    write_text(out, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {out}: {len(entries)} runs")


if __name__ == "__main__":
    main()
