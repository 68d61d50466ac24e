"""What a new user waits for: help, the first figure, and what pages and reports weigh.

    mkdocs build --site-dir SITE
    python -m benchmarks.performance.first_use --site SITE --report RUN/report.html --write

Times are processor time of one thread, so that what else the machine does has little part in them; of several rounds,
in which the commands take turns, the least counts. Without ``--write`` the page is printed alone. What is not given is
left as it was measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.markdown import markdown_table
from benchmarks.performance.results import ROOT, describe_machine
from safecircuits.base.files import write_text

DATA, PAGE = ROOT / "docs/first_use.json", ROOT / "docs/first_use.md"
HELP_AIM, REPORT_AIM = 0.4, 3e6
HELP = {"an empty Python": "-c pass", "typer alone": "-c 'import typer.rich_utils'", "safecircuits --help": "--help"}
HELP |= {f"safecircuits {name} --help": f"{name} --help" for name in ("units score", "study ssah")}
FIRST_FIGURE = (
    "layers similarity --model organism:aligned --normal organism:normal --malicious organism:malicious --n 60"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of the helps; 0: leave times as they were measured")
    parser.add_argument("--site", type=Path, help="a built site, whose pages are weighed")
    parser.add_argument("--report", type=Path, action="append", help="a report to weigh; may be repeated")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and its numbers")
    chosen = parser.parse_args()
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    if chosen.rounds:
        found |= {"helps": helps(chosen.rounds), "figure": first_figure(), "machine": describe_machine()}
        found["machine"]["clock"] = "processor time"
    if chosen.site:
        found["pages"] = runpy.run_path(str(ROOT / "docs/page_weights.py"))["weights"](chosen.site)
    if chosen.report:
        found["reports"] = {path.parent.name: path.stat().st_size for path in chosen.report}
    print(render(found))
    if chosen.write:
        write_text(DATA, json.dumps(found, indent=1) + "\n")
        write_text(PAGE, render(found))


def helps(rounds: int) -> dict[str, float]:
    """Seconds of each command that only says something, the least of the rounds."""
    taken: dict[str, list[float]] = {name: [] for name in HELP}
    for _ in range(rounds):
        for name, line in HELP.items():
            taken[name].append(processor_seconds(line if line.startswith("-c ") else f"-m safecircuits {line}"))
    return {name: round(min(each), 2) for name, each in taken.items()}


def first_figure() -> float:
    """Seconds to the first figure on an embedded model, importing and loading included."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = processor_seconds(f"-m safecircuits {FIRST_FIGURE} --out {folder}/run")
        assert (Path(folder) / "run" / "report.html").exists()
    return round(seconds, 1)


def processor_seconds(line: str) -> float:
    """Of a Python with these arguments, on one thread, with its modules compiled."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(
        [sys.executable, *shlex.split(line)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"python {line} failed")
    return used.ru_utime + used.ru_stime


def render(found: dict[str, Any]) -> str:
    """The page, from what was measured."""
    slowest = max(seconds for name, seconds in found["helps"].items() if name.startswith("safecircuits"))
    parts = [
        "# What a new user waits for",
        "",
        "Written by `python -m benchmarks.performance.first_use`, which says how. Times are processor time of one "
        "thread.",
        "",
        "## Help",
        "",
        markdown_table(["command", "seconds"], [[f"`{n}`", f"{s:.2f}"] for n, s in found["helps"].items()]),
        "",
        f"The aim is {HELP_AIM:g} s for every help: {_met(slowest <= HELP_AIM)} (the slowest here takes "
        f"{slowest:.2f} s).",
        "",
        "## The first figure",
        "",
        f"`safecircuits {FIRST_FIGURE}` takes {found['figure']:.1f} s after the installation: importing, loading, the "
        "figure and its report. How long other commands take is in their `--help` and in "
        "[Commands](reference/commands.md).",
        "",
    ]
    if "reports" in found:
        heaviest = max(found["reports"].values())
        rows = [[name, f"{size / 1e6:.2f}"] for name, size in found["reports"].items()]
        parts += ["## Reports", "", markdown_table(["run", "MB"], rows), ""]
        parts += [f"The aim is {REPORT_AIM / 1e6:g} MB: {_met(heaviest <= REPORT_AIM)}.", ""]
    if "pages" in found:
        rows = [[name, f"{size / 1e3:,.0f}"] for name, size in list(found["pages"].items())[:5]]
        parts += [
            "## Pages of this site",
            "",
            f"{len(found['pages'])} pages; the heaviest, with the pictures that they show:",
            "",
            markdown_table(["page", "kB"], rows),
            "",
        ]
    return "\n".join([*parts, ", ".join(f"{what} {value}" for what, value in found["machine"].items()), ""])


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


if __name__ == "__main__":
    main()
