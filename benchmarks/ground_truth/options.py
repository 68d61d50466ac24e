"""What each detail that SSAH leaves open does to the result, one line an option, on models whose answer is known.

    python -m benchmarks.ground_truth.options --out docs/ssah_options.json --page docs/ssah_options.md

All options but one are at their defaults in each setting. Prints the page, and writes it with ``--page``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safecircuits as sc
from benchmarks.ground_truth.direction import BENIGN, MALICIOUS
from benchmarks.ground_truth.options_common import CALIBRATION, Line, Setting, Subject
from benchmarks.ground_truth.options_page import render
from benchmarks.ground_truth.options_training import freezing_lines
from benchmarks.ground_truth.options_units import score_lines, transfer_lines
from benchmarks.ground_truth.units import planted_units
from safecircuits.base.files import write_text
from safecircuits.base.progress import track
from safecircuits.organism import prompts
from safecircuits.results.provenance import provenance

MODELS = ("aligned", "planted-units")
STEPS = (2, 4, 6, 8, 10)


PROBE: tuple[tuple[str, str, str, tuple[tuple[str, dict[str, Any]], ...]], ...] = (
    ("state", "probe_direction(pool=)", "not said", (("last", {}), ("mean", {"pool": "mean"}))),
    (
        "where the suffix goes",
        "Suffixes(where=)",
        "not said",
        (("answer", {}), ("prompt", {"suffixes": sc.direction.Suffixes(BENIGN, MALICIOUS, "prompt")})),
    ),
    (
        "suffixes a side",
        "Suffixes(benign=, malicious=)",
        "one example a side",
        (
            ("two and one", {}),
            ("first of each", {"suffixes": sc.direction.Suffixes(BENIGN[:1], MALICIOUS)}),
            ("second and first", {"suffixes": sc.direction.Suffixes(BENIGN[1:], MALICIOUS)}),
        ),
    ),
    ("baseline", "probe_direction(baseline=)", "none; reviewers ask", (("none", {}), ("query", {"baseline": "query"}))),
    ("ended texts", "probe_direction(ended=)", "not said", (("hold", {}), ("omit", {"ended": "omit"}))),
)


def probe_lines(n: int) -> Iterable[Line]:
    """Blocks that lean as the model answers, and agreement of the verdict with the answer, after 2 to 10 tokens."""
    malicious = prompts("malicious", "test", n)
    stages = {name: sc.load_model(name) for name in ("aligned", "unaligned")}

    def probed(changes: dict[str, Any]) -> dict[str, sc.DirectionProbe]:
        options: dict[str, Any] = {"suffixes": sc.direction.Suffixes(BENIGN, MALICIOUS), "steps": STEPS} | changes
        return {name: sc.probe_direction(model, malicious, **options) for name, model in stages.items()}

    def figures(probes: dict[str, sc.DirectionProbe], step: int = STEPS[-1]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name, probe in probes.items():
            gap = probe.gap(step)
            found[f"{name}: blocks to refusing"] = gap.leaning.count(1)
            found[f"{name}: blocks to answering"] = gap.leaning.count(-1)
            measured = bool(probe.measured(step=step).any())
            found[f"{name}: agreement"] = probe.agreement(step=step).rate if measured else None
        return found

    default = probed({})
    for option, argument, paper, values in PROBE:
        settings = [Setting(v, not change, figures(probed(change) if change else default)) for v, change in values]
        yield Line("probe", option, argument, paper, tuple(settings))
    settings = [Setting(str(step), step == STEPS[-1], figures(default, step)) for step in STEPS]
    yield Line("probe", "generated tokens", "probe_direction(steps=)", "2 to 10", tuple(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON of all settings")
    parser.add_argument("--page", type=Path, help="write the page here, too")
    parser.add_argument("--prompts", type=int, default=40, help="malicious and utility test prompts each")
    parser.add_argument("--steps", type=int, default=60, help="of each fine-tuning run")
    arguments = parser.parse_args()
    began, n = time.process_time(), arguments.prompts
    malicious, utility = prompts("malicious", "test", n), prompts("utility", "test", n)
    sets = {"malicious": malicious, "utility": utility, "refusal_tokens": 4, "max_new_tokens": 16}
    models = {name: sc.load_model(name) for name in MODELS}
    subjects = [Subject(name, model, planted_units(name, model), sets) for name, model in models.items()]
    freezing = freezing_lines(subjects[0], arguments.steps, n)
    parts = (probe_lines(n // 2), score_lines(subjects), transfer_lines(), freezing)
    lines = [asdict(line) for part in parts for line in track(part, "options", total=None)]
    record = {
        "provenance": provenance(
            command="benchmarks.ground_truth.options",
            datasets={"malicious": malicious, "utility": utility},
            calibration=CALIBRATION,
            steps=arguments.steps,
            probe_prompts=n // 2,
            cpu_seconds=round(time.process_time() - began),
        ),
        "models": {
            s.name: {"intact": s.zeroing.intact.rates, "planted": s.planted.n_units() if s.planted else 0}
            for s in subjects
        },
        "lines": lines,
    }
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")
    page = render(record)
    if arguments.page is not None:
        write_text(arguments.page, page)
    print(page)


if __name__ == "__main__":
    main()
