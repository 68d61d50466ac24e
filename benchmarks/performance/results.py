"""The table, and the pages that show it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.performance.timing import Row, by_processor_time
from safecircuits.base.files import write_text

ROOT = Path(__file__).parents[2]
ROWS = "docs/performance.json"
PAGES = ("benchmarks/RESULTS.md", "docs/performance.md")

INTRODUCTION = """# Speed, measured

`python -m benchmarks.performance --write` compares each operation with what people would otherwise use, and writes
this page. All variants run in one process, taking turns; the fastest of several runs counts. "x faster" is the
other's time divided by ours, "x its cost" ours divided by the other's. A growth is the exponent p of "cost grows as
size to the power p", fitted over the sizes named."""

NO_REASON = "not looked into."

NOTES = """## What was tried and left out

- `torch.compile` for decoding (8 layers of width 512, 8 rows, one processor core): 1.11 x faster, after 56 s of
  compiling. It needs a static cache, from which finished rows cannot be dropped, and recompiles for another number of
  rows. `python -m benchmarks.performance.compiled` measures it."""

LOAD = "load when finished"
PACKAGES = ("safecircuits", "torch", "transformers", "transformer-lens", "nnsight", "pyvene")


def describe_machine() -> dict[str, str]:
    """Processor or GPU, threads, load and versions."""
    facts = {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "clock": "processor time" if by_processor_time() else "wall clock",
        LOAD: " ".join(f"{x:.1f}" for x in os.getloadavg()),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    said = {True: "yes", False: "**no**", None: ""}
    head = ["| operation | against | ratio | aim | met | equal results |", "|---|---|---|---|---|---|"]
    lines = [
        f"| {row['operation']} | {row['peer']} | {_ratio(row['ratio'])} | {_aim(row['aim'])} | {said[row['met']]} "
        f"| {said[row['equal']]} |"
        for row in rows
    ]
    return "\n".join(head + lines)


def render(document: dict[str, Any]) -> str:
    """The page, made of nothing but what the runs wrote."""
    rows, machine = document["rows"], document["machine"]
    sections = [("Compared", [row for row in rows if "sizes" not in row])]
    sections.append(("Growth", [row for row in rows if "sizes" in row]))
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    missed = [row for row in rows if row["met"] is False]
    reasons = "\n".join(
        f"- **{row['operation']}**, against {row['peer']}: {row.get('why') or NO_REASON}" for row in missed
    )
    tables = "\n\n".join(f"## {name}\n\n{table(some)}" for name, some in sections if some)
    why = f"## Aims that are missed\n\n{reasons}\n\n" if missed else ""
    return f"{INTRODUCTION}\n\n{tables}\n\n{why}{NOTES}\n\n## Machine\n\n{facts}\n"


def completed(document: dict[str, Any], root: Path = ROOT) -> dict[str, Any]:
    """Rows of some parts, among those of the others as they were written last.

    Raises:
        ValueError: if those were measured elsewhere, in another size or with other versions; the load may differ, and
            our own version, which is why parts are measured again.
    """
    stored = json.loads((root / ROWS).read_text(encoding="utf-8"))
    new, old = document["machine"], stored["machine"]
    for fact in sorted(new.keys() | old.keys()):
        if fact not in (LOAD, "safecircuits") and new.get(fact) != old.get(fact):
            raise ValueError(
                f"the other rows were measured with {fact} {old.get(fact)}, these with {new.get(fact)}: "
                "measure all parts, without --only"
            )
    parts = {row["part"] for row in document["rows"]}
    rows = [row for row in stored["rows"] if row["part"] not in parts] + document["rows"]
    load = f"{old[LOAD]}; {', '.join(sorted(parts))} measured again at {new[LOAD]}"
    return {"machine": new | {LOAD: load}, "rows": sorted(rows, key=lambda row: row["part"])}


def write_results(document: dict[str, Any], root: Path = ROOT) -> list[Path]:
    """Write the rows, and the pages that show them: one beside the benchmarks, one in the documentation."""
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    written = [write_text(root / ROWS, text)]
    return written + [write_text(root / page, render(document)) for page in PAGES]


def _ratio(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _aim(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
