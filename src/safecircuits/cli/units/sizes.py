"""How many units, by which score, and a model without them: sweeps, comparisons, and smaller checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.declared import Of
from safecircuits.cli.found_on import say_overlaps_with
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.measured import Measured
from safecircuits.cli.methods import mask_of
from safecircuits.cli.options import (
    DetectorOption,
    MaliciousOption,
    TemplateOption,
    TokensOrNeededOption,
    prompt_option,
)
from safecircuits.cli.units.options import (
    AnsweredOption,
    GroupsOption,
    SafetyOption,
    ShareOfOption,
    candidates_of,
    counts_of,
    groups_of,
    require_own,
    scores_in,
)

if TYPE_CHECKING:
    from safecircuits.masks.freeze_mask import FreezeMask


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    run_command(app)(sweep)
    run_command(app)(compare)
    run_command(app)(prune)


def sweep(
    run: Run,
    groups: GroupsOption,
    measured: Measured,
    judging: JudgeOptions,
    share_of: ShareOfOption,
    scan: Annotated[
        Any, Of("units.sweep:sweep_shares.scan", "From the largest share downwards, as the paper, or upwards.")
    ] = "down",
    shares: Annotated[str | None, typer.Option("--shares", help="Shares to try, as 0.01,0.02,0.05.")] = None,
    fall: Annotated[float, typer.Option(help="The part of a rate that must be lost for it to have fallen.")] = 0.5,
    kept: Annotated[float, typer.Option(help="How much of a rate (of 1) may be lost for it to have stayed.")] = 0.05,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Which shares of safety-critical, utility-critical and redundant units do what their names say when removed?

    Takes the scores of a run of units classify, and tries one share after the other until removal has that effect.

    Example: safecircuits units sweep --model organism:aligned --groups runs/units --malicious organism:malicious
    --utility organism:utility --shares 0.01,0.05,0.1 --n 60 --out runs/sweep
    """
    from dataclasses import replace

    from safecircuits.units.sweep import SHARES, sweep_shares

    sets: Any = measured.read(run)
    if lacking := [name for name in ("malicious", "utility") if name not in sets]:
        raise ValueError(f"a sweep stops on behaviour: give --{lacking[0]}")
    safety, utility = scores_in(run, groups)
    tried = SHARES if shares is None else tuple(_number(text, "--shares") for text in shares.split(","))
    judge = judging.made(run, sets)
    folder = judging.begin(run, judge)
    model = run.model()
    require_own(safety, model, "the scores")
    found = sweep_shares(
        model,
        safety,
        utility,
        shares=tried,
        scan=scan,
        fall=fall,
        kept=kept,
        share_of=share_of,
        resume=folder.work("removals.jsonl"),
        progress=True,
        detector=detector if judge is None else judge,
        max_new_tokens=max_new_tokens,
        template=template,
        **sets,
    )
    say_overlaps_with(run, groups, sets)
    folder.result("sweep", found)
    folder.tables("sweep", found, main=True)
    run.say(f"intact: {found.intact}")
    for group, share in found.shares.items():
        run.say(f"{group}: {f'{100 * share:.2f} %' if share else 'no share did what the name says'}")
    run.answer(shares=dict(found.shares))
    if scu := found.groups["SCU"]:
        about = {"command": run.command, "model": run.source, **scu.provenance}
        replace(scu, provenance=about).save(folder.file("freeze.safetensors"))


def compare(
    run: Run,
    safety: SafetyOption,
    utility: AnsweredOption,
    reference: Annotated[str, prompt_option("--reference", "Normal prompts, with which attributions compare.")],
    malicious: MaliciousOption,
    known: Annotated[str, prompt_option("--known", "Prompts with known answers, that utility is measured on.")],
    judging: JudgeOptions,
    score: Annotated[
        list[str] | None,
        typer.Option(
            "--score",
            help="METHOD[:TOKENS[:NORMALIZE[:CONTRAST]]], as wifv:response:log or attribution; may be repeated. The "
            "most telling ones unless given.",
        ),
    ] = None,
    counts: Annotated[str | None, typer.Option("--counts", help="Units to remove, as 1,2,4,8,16.")] = None,
    planted: Annotated[
        Path | None, typer.Option("--planted", help="A mask of the units that carry refusal, where that is known.")
    ] = None,
    max_utility_loss: Annotated[float, typer.Option(help="Utility (of 1) that a sufficient set may cost.")] = 0.02,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Which score finds what carries refusal? Ablates the highest units by each score, and measures what is left.

    What units are scored on (--safety, --utility, --reference) should not be what they are judged on (--malicious,
    --known).

    Example: safecircuits units compare --model organism:planted-units --safety organism:malicious
    --utility organism:utility --reference organism:normal --malicious organism:malicious --known organism:utility
    --score wifv --score attribution --counts 4,16,64 --n 40 --out runs/scores
    """
    from safecircuits.units.candidates import default_candidates
    from safecircuits.units.comparison import score_comparison

    chosen = candidates_of(score) if score else default_candidates(quick=True)
    removed = None if counts is None else counts_of(counts)
    known_units = None if planted is None else mask_of(run, planted)
    scored, answered = (run.prompts(n, s, responses=True) for n, s in (("safety", safety), ("utility", utility)))
    other = run.prompts("reference", reference)
    sets: Any = {
        "malicious": run.prompts("malicious", malicious),
        "utility": run.prompts("known", known, responses=True),
    }
    judge = judging.made(run, sets)
    folder = judging.begin(run, judge)
    found = score_comparison(
        run.model(),
        scored,
        answered,
        other,
        candidates=chosen,
        counts=removed,
        planted=known_units,
        max_utility_loss=max_utility_loss,
        resume=folder.work("removals.jsonl"),
        progress=True,
        detector=detector if judge is None else judge,
        max_new_tokens=max_new_tokens,
        template=template,
        **sets,
    )
    folder.result("scores", found)
    folder.tables("scores", found, main=True)
    folder.figure("scores", found.plot(axis((4.2, 3.0))), of=found)
    run.say(f"intact: {found.intact}")
    for curve in found.ranked():
        enough = "no number of units tried" if curve.smallest is None else f"{curve.smallest} units"
        run.say(f"{curve.candidate}: {enough} halve refusal at no more than {max_utility_loss:.0%} of utility")
    best = found.ranked()[0]
    run.answer(best=str(best.candidate), smallest_set=best.smallest)


def prune(
    run: Run,
    measured: Measured,
    judging: JudgeOptions,
    mask: Annotated[Path | None, typer.Option("--mask", help="A mask of the units that go.")] = None,
    groups: Annotated[
        Path | None, typer.Option("--groups", help="Instead: the run directory of units classify.")
    ] = None,
    group: Annotated[
        Any, Of("units.groups:Group", "With --groups: which go; may be repeated. RU if not.", several=True)
    ] = None,
    neurons: Annotated[
        int, typer.Option(help="With --groups: instead, so many of the least important neurons a layer.", min=0)
    ] = 0,
    kv_heads: Annotated[
        int, typer.Option(help="With --groups: and so many of the least important key/value heads.", min=0)
    ] = 0,
    compensate: Annotated[
        bool, typer.Option("--compensate", help="With --groups: what the units write on average becomes a bias (FLAP).")
    ] = False,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Remove units from the weights: a smaller checkpoint for plain transformers, checked against ablation by hooks.

    What --malicious, --over-rejection and --utility name is measured before and after.

    Example: safecircuits units prune --model organism:aligned --groups runs/units --group RU
    --malicious organism:malicious --utility organism:utility --n 60 --out runs/smaller
    """
    from dataclasses import replace

    import pandas as pd

    from safecircuits.behavior.categories import category_frame
    from safecircuits.behavior.change import BehaviorChange
    from safecircuits.behavior.divergence import divergences, references_of
    from safecircuits.behavior.evaluate import evaluate
    from safecircuits.model.load import load_model
    from safecircuits.units.prune import prune_units

    if (mask is None) == (groups is None):
        raise ValueError("which units go? give --mask, or --groups of a run of units classify")
    if mask is not None and (group or neurons or kv_heads or compensate):
        raise ValueError("--group, --neurons, --kv-heads and --compensate choose by a classification: give --groups")
    if group and (neurons or kv_heads):
        raise ValueError("give --group, or --neurons and --kv-heads, not both")
    units = mask_of(run, mask) if mask is not None else _chosen(run, groups, group, neurons, kv_heads)
    means = scores_in(run, groups)[1].mean if compensate and groups is not None else None
    if not units:
        raise ValueError("there is no unit to remove: the mask or group is empty")
    sets = measured.read(run)
    judge = judging.made(run, sets)
    folder = judging.begin(run, judge)
    model = run.model()
    options: Any = {"detector": detector if judge is None else judge}
    options |= {"max_new_tokens": max_new_tokens, "template": template, **sets}
    smaller = prune_units(model, units, compensate=means)
    if groups is not None:
        say_overlaps_with(run, groups, sets)
    rows: dict[str, Any] = {"before": {"parameters": smaller.parameters_before}}
    rows["after"] = {"parameters": smaller.parameters_after}
    change: BehaviorChange | None = None
    if sets:
        references = references_of(model, sets | {"template": template})
        cut = load_model(smaller.hf_model, backend="bridge", tokenizer=smaller.tokenizer)
        options |= {"unchanged": model, "progress": True}
        measured_on = {name: evaluate(one, **options) for name, one in (("before", model), ("after", cut))}
        for name, behavior in measured_on.items():
            rows[name] |= behavior.figures
        change = BehaviorChange(**measured_on)
        folder.result("behavior", change)
        folder.tables("changes", change)
        rows["after"] |= replace(measured_on["after"], kl=divergences(references, cut)).kl_means
        kinds = category_frame(({"model": name}, one.by_category) for name, one in measured_on.items())
        if len(kinds):
            folder.table("pruned_by_category", kinds)
    folder.table("pruned", pd.DataFrame([{"model": name, **row} for name, row in rows.items()]), main=True)
    smaller.save(folder.folder / "model")
    folder.files_in("model")
    run.say(f"{smaller.n_units} units removed: {smaller.parameters_before:,} → {smaller.parameters_after:,} parameters")
    for site, filling in smaller.filling.items():
        if filling:
            run.say(f"{site}: {filling} all-zero units fill the layers up to one width")
    if change is not None:
        run.say(str(change))
    run.answer(**rows, units=smaller.n_units)


def _chosen(run: Run, groups: Path | None, group: list[str] | None, neurons: int, kv_heads: int) -> FreezeMask:
    """The units of a classification that go."""
    from functools import reduce
    from operator import or_

    from safecircuits.units.prune import lowest_even

    assert groups is not None
    found = groups_of(run, groups)
    if neurons or kv_heads:
        return lowest_even(found.total, found.shape, neurons=neurons, kv_heads=kv_heads)
    return reduce(or_, (found[name] for name in group or ["RU"]))


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} is numbers with commas between them, not {text!r}") from None
