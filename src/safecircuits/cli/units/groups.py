"""Scores of units, and the four groups that they are sorted into."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.found_on import keep_found_on
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.options import prompt_option
from safecircuits.cli.units.options import (
    AnsweredOption,
    ReferenceOption,
    SafetyOption,
    Scoring,
    ShareOfOption,
    Shares,
    scores_of,
)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    run_command(app)(score)
    run_command(app)(classify)


def score(
    run: Run,
    data: Annotated[str, prompt_option("--data", "Prompts with responses.")],
    scoring: Scoring,
    reference: ReferenceOption = None,
    top: Annotated[int, typer.Option(help="Units to list, from the highest score down.", min=1)] = 64,
) -> None:
    """Score every MLP neuron and attention head on a data set.

    Example: safecircuits units score --model organism:aligned --data organism:malicious --method wifv --n 60
    --out runs/score
    """
    import pandas as pd

    from safecircuits.plots.scores import plot_score_map
    from safecircuits.units.profiling import PROMPTS, SHOWN, unit_profiles

    sets = {"data": run.prompts("data", data, responses=True)}
    other = run.prompts("reference", reference)
    folder = run.begin()
    model = run.model()
    found = scores_of(run, model, sets, other, scoring)["data"]
    n = min(top, sum(values.numel() for values in found.scores.values()))
    top_units = found.top(n)
    rows = [
        {"site": site, "layer": layer, "unit": unit, "score": float(found.scores[site][layer, unit])}
        for site in found.scores
        for layer, units in top_units.members(site).items()
        for unit in units
    ]
    highest = pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable")
    keep_found_on(folder, **sets)
    folder.result("scores", found)
    folder.table("highest", highest, main=True)
    folder.figure("highest", plot_score_map(found.record(n), ax=axis()), of=found)
    looked = {name: one.at_most(PROMPTS) for name, one in (*sets.items(), ("reference", other)) if one is not None}
    profiles = unit_profiles(model, found.top(min(n, SHOWN)), looked, scores=found, template=scoring.template)
    folder.result("profiles", profiles)
    folder.table("profiles", profiles.to_frame())
    best = highest.iloc[0]
    run.answer(highest={"site": best["site"], "layer": int(best["layer"]), "unit": int(best["unit"])})
    run.say(
        f"{found.verdict}: highest is {best['site']} unit {best['unit']} of layer "
        f"{best['layer']}; half of the {n} highest lie in layers {_where(highest['layer'])}"
    )


def classify(
    run: Run,
    safety: SafetyOption,
    utility: AnsweredOption,
    shares: Shares,
    scoring: Scoring,
    share_of: ShareOfOption,
    scu_by: Annotated[
        str | None, typer.Option("--scu-by", help="Another score that SCU are cut by, such as attribution.")
    ] = None,
    reference: ReferenceOption = None,
) -> None:
    """Sort units into safety-critical (SCU), utility-critical (UCU), complex (CU) and redundant (RU) ones, by shares of
    all units. Writes a freeze mask of the SCU, too.

    Example: safecircuits units classify --model organism:aligned --safety organism:malicious --utility organism:utility
    --n 60 --out runs/units

    To choose SCU by attribution of the choice to refuse: --scu-by attribution --reference organism:normal
    """
    from safecircuits.plots.units import plot_unit_map
    from safecircuits.units.groups import classify_units
    from safecircuits.units.profiling import scu_profiles

    sets = {"safety": run.prompts("safety", safety, responses=True)}
    sets["utility"] = run.prompts("utility", utility, responses=True)
    other = run.prompts("reference", reference)
    folder = run.begin()
    model = run.model()
    causal = None
    if scu_by is not None:
        by = Scoring(method=scu_by, template=scoring.template, count_beginning=scoring.count_beginning)
        causal = scores_of(run, model, {"safety": sets["safety"]}, other, by)["safety"]
    scores = scores_of(run, model, sets, other, scoring)
    pair = scores["safety"], scores["utility"]
    groups = classify_units(*pair, scu_by=causal, share_of=share_of, **shares.options)
    for name, found in scores.items():
        folder.result(f"{name}_scores", found)
    keep_found_on(folder, **sets)
    folder.result("groups", groups)
    folder.table("groups", groups.to_frame(), main=True)
    folder.figure("groups", plot_unit_map(groups, ax=axis((4.2, 3.2))), of=groups)
    scu = groups["SCU"]
    if scu:
        profiles = scu_profiles(model, groups, sets, template=scoring.template)
        folder.result("profiles", profiles)
        folder.table("profiles", profiles.to_frame())
    mask = replace(scu, provenance={"command": run.command, "model": run.source, **scu.provenance})
    counted = groups.to_frame()
    run.answer(**{group: int(counted[group].sum()) for group in groups.shares()})
    for group, share in groups.shares().items():
        run.say(f"{int(counted[group].sum())} {GROUP_WORDS[group]} units ({group}), {100 * share:.2f} % of all")
    if mask:
        mask.save(folder.file("freeze.safetensors"))
        run.say(f"freeze.safetensors: the SCU, {100 * mask.share_of_parameters(model):.2f} % of the model's parameters")
    run.caveat(AS_ASKED)


AS_ASKED = (
    "how large the groups are was asked for (--scu, --ucu, --ru), and not found; whether a group does what its name "
    "says shows only when it is removed (units ablate)"
)
GROUP_WORDS = {"SCU": "safety-critical", "UCU": "utility-critical", "CU": "complex", "RU": "redundant"}


def _where(layers: Any) -> str:
    """The layers that hold half of the units, most first."""
    counts = layers.value_counts()
    enough = int((counts.cumsum() < counts.sum() / 2).sum()) + 1
    return ", ".join(str(layer) for layer in sorted(counts.index[:enough]))
