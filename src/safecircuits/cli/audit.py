"""``safecircuits audit``: may this model take the place of that one? A page, files for CI, and an exit code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.found_on import say_overlaps_of_masks
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.measured import Measured
from safecircuits.cli.methods import mask_of
from safecircuits.cli.options import DetectorOption, MaybeNormal, TemplateOption, TokensOrNeededOption

if TYPE_CHECKING:
    from safecircuits.gate.auditing import Audit
    from safecircuits.gate.policy import Policy
    from safecircuits.results.run import RunDirectory


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app, model=False)(audit)


def audit(
    run: Run,
    before: Annotated[str, typer.Argument(help="The model before: a hub id, a folder, or organism:NAME.")],
    after: Annotated[str, typer.Argument(help="The model after training.")],
    measured: Measured,
    judging: JudgeOptions,
    normal: MaybeNormal = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="YAML or TOML file of limits; the usual limits if left out."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="A freeze mask: the units that should not have moved.")
    ] = None,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Compare a model after training with the model before: refusal, over-rejection, coherence, KL, utility, weights.

    With --normal also the refusal direction: its cosine and, if the policy asks, the effect of ablating and adding it.
    Ends with exit code 0 if no requirement of the policy is shown to be broken, 1 if one is, 2 for bad input. Writes
    report.html, audit.json, junit.xml and audit.sarif. Takes about as long as safecircuits evaluate on both models: a
    minute for a hundred prompts of a model of 100 million parameters on two cores.

    Example: safecircuits audit organism:aligned organism:unaligned --malicious organism:malicious
    --over-rejection organism:over_rejection --utility organism:utility --n 100 --out runs/audit
    """
    from safecircuits.gate.auditing import audit as held_against
    from safecircuits.gate.auditing import require_measurable
    from safecircuits.gate.policy import Policy, read_policy

    limits = None if policy is None else read_policy(policy)
    if policy is not None:
        run.inputs["policy"] = hashlib.sha256(policy.read_bytes()).hexdigest()[:16]
    safety = None if mask is None else mask_of(run, mask)
    sets = measured.read(run)
    if normal is not None:
        sets["normal"] = run.prompts("normal", normal)
    given = [*sets, *(["mask"] if safety is not None else [])]
    if not given:
        raise ValueError("nothing to audit: give --malicious, --over-rejection, --utility or --mask")
    chosen: Policy = Policy.usual(given) if limits is None else limits
    require_measurable(chosen, given)
    judge = judging.made(run, sets)
    folder = judging.begin(run, judge, before, after)
    say_overlaps_of_masks(run, sets)
    found = held_against(
        run.model(before),
        run.model(after),
        chosen,
        mask=safety,
        detector=detector if judge is None else judge,
        max_new_tokens=max_new_tokens,
        template=template,
        progress=True,
        **sets,
    )
    _write(run, folder, found, "policy.yaml" if policy is None else policy.as_posix())


def _write(run: Run, folder: RunDirectory, found: Audit, policy: str) -> None:
    from dataclasses import replace

    from safecircuits.base.files import write_text
    from safecircuits.behavior.change import BehaviorChange
    from safecircuits.gate.ci import junit, sarif

    names = run.arguments["before"], run.arguments["after"]
    found = replace(found, models=(str(names[0]), str(names[1])))
    folder.result("audit", found)
    folder.table("checks", found.to_frame(), main=True)
    if found.before.shares:
        folder.figure("behavior", found.plot(axis((4.2, 1.7))), of=found)
        folder.table("rates", _rates(found))
        folder.tables("changes", BehaviorChange(found.before, found.after))
    for model, by_set in found.answers.items():
        for name, verdicts in by_set.items():
            verdicts.save_lines(folder.file(f"completions/{name}_{model}.jsonl"))
    write_text(folder.file("audit.json"), json.dumps(found.record(), indent=1, ensure_ascii=False) + "\n")
    write_text(folder.file("junit.xml"), junit(found))
    write_text(folder.file("audit.sarif"), sarif(found, policy))
    run.say(found.verdict)
    for check in found.checks:
        run.say(str(check))
    for what, value in found.numbers.items():
        run.say(f"{what.replace('_', ' ')}: {value:.4g}")
    run.answer(**{key: value for key, value in found.record().items() if key != "checks"})
    folder.record["exit"] = 0 if found.passed else 1


def _rates(found: Audit) -> Any:
    """Rates of both models with what their completions are."""
    import pandas as pd

    frames = [getattr(found, name).to_frame().assign(model=name) for name in ("before", "after")]
    return pd.concat(frames, ignore_index=True)
