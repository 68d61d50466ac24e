"""What several processes of one machine save: collection, scoring and localization by two of them against one.

    python -m benchmarks.performance.processes           # prints the table
    python -m benchmarks.performance.processes --write   # and writes docs/processes.md

Each process has one thread; with fewer idle cores than processes they share them, and nothing is saved. Runs of one and
of two processes take turns; of each the least of the rounds counts. Memory is the largest process's peak in that
operation with the model, and bytes are what one process sends to the others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

import safecircuits as sc
from benchmarks.performance import subjects
from benchmarks.performance.at_scale import SCALES, Peak, random_llama
from benchmarks.performance.results import ROOT, describe_machine
from safecircuits.base.files import write_text
from safecircuits.base.processes import gather, is_main
from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.counting import RefusalCounter

PAGE = "docs/processes.md"
AIM = 1.7
OPERATIONS = {
    "collection": "residual streams of 512 prompts, Alpaca template",
    "scoring": "WIFV scores of 64 × 128 tokens",
    "localization": "refusals counted in 4 configurations × 128 prompts × 16 tokens",
}


def work() -> dict[str, Callable[[], Any]]:
    """The operations, on a model of Llama's architecture with random weights."""
    model = subjects.hooked(random_llama(SCALES["tiny"]))
    many, asked, texts = subjects.prompts(512), subjects.prompts(128), subjects.long_texts(64, 128)
    blocks = [(LayerRange(2, 2 + i), 1.2) for i in range(4)]
    return {
        "collection": lambda: sc.collect_residuals(model, many, template="alpaca"),
        "scoring": lambda: sc.score_units(model, texts, template="{instruction} "),
        "localization": lambda: RefusalCounter(model, asked, max_new_tokens=16, template="alpaca").count_all(blocks),
    }


def measure(out: Path) -> None:
    """What each of the launched processes runs; process 0 writes seconds, gigabytes and bytes of each operation."""
    found: dict[str, Any] = {}
    sent, send = 0, dist.all_gather_object

    def counted(values: list[Any], value: Any) -> None:
        nonlocal sent
        sent += len(pickle.dumps(value))
        send(values, value)

    dist.all_gather_object = counted
    for name, way in work().items():
        gather(None)  # all begin together
        peak, sent, start = Peak(), 0, time.perf_counter()
        way()
        seconds, used, bytes_sent = time.perf_counter() - start, peak.gigabytes(), sent
        every = gather((seconds, used, bytes_sent))
        found[name] = dict(zip(("seconds", "gigabytes", "bytes"), map(max, zip(*every, strict=True)), strict=True))
    if is_main():
        out.write_text(json.dumps(found), encoding="utf-8")


def launched(n: int) -> dict[str, Any]:
    """One run of ``measure`` in ``n`` processes of one thread each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", "-m", "--"]
        command = [*launcher, "benchmarks.performance.processes", "--into", str(out)]
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def compared(rounds: int) -> dict[str, dict[str, float]]:
    """Of each operation the least seconds of one and of two processes, memory and bytes of two."""
    best = {name: dict.fromkeys(("one", "two"), math.inf) for name in OPERATIONS}
    for _ in range(rounds):
        for which, n in (("one", 1), ("two", 2)):
            for name, row in launched(n).items():
                best[name][which] = min(best[name][which], row["seconds"])
                best[name] |= {f"{which} {what}": row[what] for what in ("gigabytes", "bytes")}
    return best


def render(rows: dict[str, dict[str, float]]) -> str:
    """The page."""
    machine = describe_machine() | {"clock": "wall clock"}
    lines = [
        "# What two processes save",
        "",
        "Written by `python -m benchmarks.performance.processes --write`: a model of Llama's architecture with random "
        f"weights, one thread a process. The aim is {AIM:g} times as fast where each process has a core of its own.",
        "",
        "| operation | one process, s | two, s | speed-up | GB a process, of one / of two | kB that each sends |",
        "|---|---|---|---|---|---|",
    ]
    for name, text in OPERATIONS.items():
        row = rows[name]
        ratio = row["one"] / row["two"]
        memory = f"{row['one gigabytes']:.2f} / {row['two gigabytes']:.2f}"
        lines.append(
            f"| {text} | {row['one']:.2f} | {row['two']:.2f} | {ratio:.2f} ({'met' if ratio >= AIM else 'missed'}) | "
            f"{memory} | {row['two bytes'] / 1e3:,.0f} |"
        )
    lines += ["", ", ".join(f"{what} {value}" for what, value in machine.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # what the launched processes are told
    chosen = parser.parse_args()
    if chosen.into is not None:
        measure(chosen.into)
        return
    page = render(compared(chosen.rounds))
    print(page)
    if chosen.write:
        write_text(ROOT / PAGE, page)


if __name__ == "__main__":
    main()
