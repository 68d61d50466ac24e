"""The main job end to end on the embedded models: find, prove, protect, report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from safecircuits import organism
from safecircuits.base.files import write_text
from safecircuits.base.reading import inside, read_json
from safecircuits.demo.bench import Bench, demo_prompts
from safecircuits.demo.conclusions import conclusions
from safecircuits.demo.parts import Results
from safecircuits.demo.settings import DemoSettings
from safecircuits.demo.stations import run_stations
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.results.provenance import provenance
from safecircuits.results.run import AlreadyComplete, RunDirectory

RESULTS = "results.json"


def run_demo(out: str | Path, settings: DemoSettings | None = None) -> Results:
    """Run the whole chain in a run directory (see ``safecircuits.results.run``): an interrupted one goes on.

    Beside what every run has it holds ``results.json``, which the report is made from, the report itself, and
    ``freeze.safetensors``, the mask of the located layers and the safety-critical units of the ``aligned`` model.

    Returns:
        The contents of ``results.json``; those of a run that was complete before, too.

    Raises:
        ValueError: if the folder holds another run, or files that are none.

    Examples:
        >>> results = sc.demo.run_demo("demo", sc.demo.DemoSettings())  # doctest: +SKIP
    """
    settings = settings or DemoSettings()
    try:
        run = RunDirectory.open(out, "demo", asdict(settings), inputs=demo_inputs(settings))
    except AlreadyComplete:
        results: Results = read_json(inside(out, RESULTS))
        return results
    with run:
        return demo_into(run, settings)


def demo_inputs(settings: DemoSettings) -> dict[str, Any]:
    """Fingerprints of the prompts and models that the demo reads, by name."""
    sets = {
        f"{kind} {split}": {"n": len(prompts), "sha": prompts.fingerprint}
        for (kind, split), prompts in demo_prompts(settings).items()
    }
    return sets | {f"model organism:{stage}": fingerprint_checkpoint(stage) for stage in organism.STAGES}


def demo_into(run: RunDirectory, settings: DemoSettings) -> Results:
    """The chain in a run directory that is open."""
    from safecircuits.report.figures import figures
    from safecircuits.report.html import write_report

    started = time.perf_counter()
    with one_thread():
        bench = Bench(settings, run)
        results, mask = run_stations(bench)
    results["provenance"] = provenance(
        command="safecircuits demo",
        seed=settings.seed,
        datasets={f"{kind} {split}": prompts for (kind, split), prompts in bench.sets.items()},
        settings=asdict(settings),
        seconds=round(time.perf_counter() - started, 1),
    )
    results["conclusions"] = conclusions(results)
    for entry in results["conclusions"]:
        run.say(f"{entry['shows']:>8}  {entry['effect']} ({entry['paper']}): {entry['text']}")
    mask.save(run.file("freeze.safetensors"))
    write_text(run.file(RESULTS), json.dumps(results, indent=1, allow_nan=False) + "\n")
    run.table("conclusions", pd.DataFrame(results["conclusions"]), main=True)
    for name, figure in figures(results).items():
        run.figure(name, figure)
    write_report(results, run.file("report.html"))
    return results


def saved_page(folder: Path, record: Mapping[str, Any]) -> str:  # noqa: ARG001  as every command's page is made
    """The report of a complete run, from its saved results."""
    from safecircuits.report.html import render

    return render(read_json(inside(folder, RESULTS)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums add up in the same order however many cores there are, so that the figures do not depend on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
