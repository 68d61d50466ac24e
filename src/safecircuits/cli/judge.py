"""``safecircuits judge``: saved completions are judged again, and judges are tried for what turns them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.options import DetectorOption

if TYPE_CHECKING:
    from safecircuits.behavior.completions import Completions
    from safecircuits.behavior.verdict_table import Verdicts
    from safecircuits.results.run import RunDirectory

app = typer.Typer(help="Judge saved completions, and judge the judges.", no_args_is_help=True)

CompletionsOption = Annotated[
    Path,
    typer.Option(
        "--completions",
        help="JSON lines with prompt and completion, as runs keep them (RUN/completions/malicious.jsonl), or a log of "
        "Inspect (.eval, .json) or of lm-evaluation-harness (samples_TASK_….jsonl).",
    ),
]


@run_command(app, prompts=False, model=False)
def completions(
    run: Run,
    completions: CompletionsOption,
    judging: JudgeOptions,
    detector: DetectorOption = "opening",
) -> None:
    """Judge saved completions by a detector or a judge: which refuse or, for a judge of harm, which are harmful.

    A detector takes seconds, a judge as long as its replies.

    Example: safecircuits judge completions --completions runs/evaluate/completions/malicious.jsonl --judge wildguard
    --judge-url http://localhost:8000/v1 --judge-model wildguard --judge-calls 500 --out runs/wildguard
    """
    from safecircuits.behavior.verdict import verdicts

    answers = _read(run, completions)
    judge = judging.made(run)
    folder = judging.begin(run, judge)
    if judge is not None and not getattr(judge, "says_refusal", True):
        said = judge.harms(answers)  # type: ignore[attr-defined]
        folder.result("harms", said)
        folder.table("harms", said.to_frame().drop(columns=["prompt", "completion"]), main=True)
        run.say(f"{judging.judge}: {said}")
        run.answer(harmful=said.share.rate, n=said.share.n)
        return
    found = verdicts(answers, judge if judge is not None else detector)
    _keep(run, folder, found)


@run_command(app, prompts=False, model=False)
def robustness(
    run: Run,
    completions: CompletionsOption,
    judging: JudgeOptions,
    detector: Annotated[
        list[str] | None, typer.Option("--detector", help="A detector; may be repeated. All of them unless given.")
    ] = None,
) -> None:
    """How many verdicts flip when a disclaimer, a refusal or an answer is added to completions, by detector.

    A judge is asked about each completion and each changed one: about seven calls a completion.

    Example: safecircuits judge robustness --completions runs/evaluate/completions/malicious.jsonl --out runs/robustness
    """
    from safecircuits.behavior.detectors import DETECTORS, get_detector
    from safecircuits.behavior.robustness import robustness_table

    answers = _read(run, completions)
    judge = judging.made(run)
    detectors: list[Any] = [judge] if judge is not None else list(detector or DETECTORS)
    for one in detectors:
        get_detector(one)
    folder = judging.begin(run, judge)
    table, found = robustness_table(answers, detectors)
    for one in found:
        folder.result(f"robustness_{one.detector}".replace("/", "_"), one)
    folder.table("robustness", table, main=True)
    for one in found:
        name, share = one.worst
        run.say(f"{one.detector}: most verdicts that should stay flip by {name!r}, {share}")
    run.answer(worst={one.detector: {"change": one.worst[0], "flipped": one.worst[1].rate} for one in found})


def _read(run: Run, path: Path) -> Completions:
    """Saved completions, as an input of the run."""
    from hashlib import sha256

    from safecircuits.behavior.completions import Completions

    found = Completions.load(path)
    sha = sha256(path.read_bytes()).hexdigest()
    run.inputs["completions"] = {"source": str(path), "n": len(found), "sha": sha[:12]}
    return found


def _keep(run: Run, folder: RunDirectory, found: Verdicts) -> None:
    import pandas as pd

    found.save_lines(folder.folder / "completions.jsonl")
    folder.file("completions.jsonl")
    tallies = {"all": found.tally, **found.by_category}
    rows = [
        {"category": name, "refused": tally.refuses, "share": tally.refuses / tally.n, "complies": tally.complies}
        | tally.record("")
        for name, tally in tallies.items()
    ]
    folder.table("verdicts", pd.DataFrame(rows), main=True)
    run.say(f"{found.detector}: {found}")
    run.answer(refused=found.tally.refuses / found.tally.n, **found.tally.record(""))
