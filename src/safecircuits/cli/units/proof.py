"""What shows that a group is what its name says: its removal, other prompts, and where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.declared import Of
from safecircuits.cli.found_on import say_overlaps_with
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.measured import Measured
from safecircuits.cli.options import DetectorOption, TemplateOption, TokensOrNeededOption, layer_range
from safecircuits.cli.units.options import (
    AnsweredOption,
    GroupsOption,
    SafetyOption,
    Scoring,
    Shares,
    groups_of,
    require_own,
)

if TYPE_CHECKING:
    from safecircuits.behavior.measured import Behavior
    from safecircuits.units.ablation import Ablation


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    run_command(app)(ablate)
    run_command(app)(stability)
    run_command(app, prompts=False)(enrichment)


def ablate(
    run: Run,
    *,
    groups: GroupsOption,
    measured: Measured,
    judging: JudgeOptions,
    group: Annotated[
        Any,
        Of("units.groups:Group", "Which to remove; may be repeated. SCU, UCU, RU if not.", several=True),
    ] = None,
    controls: Annotated[
        Any, Of("units.ablation:ablate_groups.controls", "Draws of as many random units beside each group.", least=0)
    ],
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Ablate each group, and as many random units as a control, and measure safety and utility.

    A judge is asked about every answer that differs: of each group and of each of its --controls.

    Example: safecircuits units ablate --model organism:aligned --groups runs/units --malicious organism:malicious
    --utility organism:utility --n 60 --out runs/ablation
    """
    from safecircuits.plots.units import plot_ablation
    from safecircuits.units.ablation import ablate_groups, mean_rates

    sets: Any = measured.require(run)
    chosen = groups_of(run, groups)
    judge = judging.made(run, sets)
    folder = judging.begin(run, judge)
    say_overlaps_with(run, groups, sets)
    model = run.model()
    require_own(chosen, model)
    names = tuple(group) if group else ("SCU", "UCU", "RU")
    found = ablate_groups(
        model,
        chosen,
        names=names,
        controls=controls,
        seed=run.seed,
        resume=folder.work("removals.jsonl"),
        progress=True,
        detector=detector if judge is None else judge,
        max_new_tokens=max_new_tokens,
        template=template,
        **sets,
    )
    folder.result("ablation", found)
    folder.tables("ablation", found, main=True)
    shown = [rate for rate in ("malicious_refused", "over_rejected", "utility") if rate in found.intact.rates]
    folder.figure("ablation", plot_ablation(found, metrics=shown, ax=axis()), of=found)
    run.answer(intact=found.intact.record(), **{f"without_{row.name}": row.behavior.record() for row in found.rows})
    if found.rows:
        run.say(_in_short(found.intact, found.rows[0]))
    run.say(f"intact: {found.intact}")
    for row in found.rows:
        run.say(f"without {row.name} ({row.n_units} units): {row.behavior}")
        if row.random_controls:
            draws = f"{len(row.random_controls)} draw{'s' * (len(row.random_controls) > 1)}"
            rates = mean_rates(row.random_controls).items()
            listed = ", ".join(f"{name.replace('_', ' ')} {100 * rate:.1f} %" for name, rate in rates)
            run.say(f"without as many random units ({draws}): {listed}")
    run.caveat(found.caveat)


def _in_short(intact: Behavior, row: Ablation) -> str:
    """Each rate as it was, without the units, and without as many random ones; and how many answers are no language."""
    from safecircuits.base.text import percent
    from safecircuits.units.ablation import mean_rates

    random = mean_rates(row.random_controls) if row.random_controls else {}
    parts = [
        f"{name.replace('_', ' ')} {percent(rate)} → {percent(row.behavior.rates[name])}"
        + (f" (without as many random units {percent(random[name])})" if name in random else "")
        for name, rate in intact.rates.items()
    ]
    strange, n = (sum(getattr(one, what) for one in row.behavior.tallies.values()) for what in ("incoherent", "n"))
    damage = f"; {strange} of {n} answers without {row.name} are incoherent" if strange else ""
    return f"without {row.name} ({row.n_units} units): {', '.join(parts)}{damage}"


def stability(
    run: Run,
    *,
    safety: SafetyOption,
    utility: AnsweredOption,
    subset: Annotated[int, typer.Option(help="Prompts of each set in one draw.", min=1)],
    shares: Shares,
    scoring: Scoring,
    draws: Annotated[Any, Of("units.resampling:calibration_subsets.draws", "Subsets to compare.", least=2)],
) -> None:
    """Would other prompts have found the same units? Groups on random subsets of both sets, compared pair by pair.

    Example: safecircuits units stability --model organism:aligned --safety organism:malicious
    --utility organism:utility --subset 30 --draws 3 --n 60 --out runs/stability
    """
    from safecircuits.plots.scores import plot_stability
    from safecircuits.units.resampling import calibration_subsets
    from safecircuits.units.resampling import stability as compare

    sets = [run.prompts(n, given, responses=True) for n, given in (("safety", safety), ("utility", utility))]
    subsets = calibration_subsets(*sets, n=subset, draws=draws, seed=run.seed)
    folder = run.begin()
    found = compare(run.model(), subsets, progress=True, **shares.options, **scoring.options)
    folder.result("stability", found)
    folder.table("stability", found.to_frame(), main=True)
    for name in found.jaccard:
        folder.figure(f"stability_{name}", plot_stability(found, name, ax=axis((4.2, 4.2))), of=found)
    run.answer(stability={row.what: row.mean for row in found.to_frame().itertuples(index=False)})
    for row in found.to_frame().itertuples(index=False):
        interval = f" [{row.low:.2f}, {row.high:.2f}]" if len(found.names) > 2 else ""
        run.say(f"{row.what}: mean {row.mean:.2f}{interval}, least {row.least:.2f}, by chance {row.chance:.2f}")


def enrichment(
    run: Run,
    *,
    groups: GroupsOption,
    layers: Annotated[str | None, typer.Option("--layers", help="FIRST,LAST: the safety layers, as a whole.")] = None,
    group: Annotated[Any, Of("units.groups:Group", "Whose units.")] = "SCU",
    draws: Annotated[Any, Of("units.overlap:enrichment.draws", "Permutations.", least=1)],
    budget: Annotated[
        float | None, typer.Option(help="Also write masks of this share of all units' parameters, to freeze.")
    ] = None,
) -> None:
    """Are safety-critical units concentrated in the safety layers? Counts by layer against chance, overlap of both.

    Example: safecircuits units enrichment --model organism:aligned --groups runs/units --layers 3,5
    --out runs/enrichment
    """
    from safecircuits.masks.freeze_mask import FreezeMask
    from safecircuits.units.equal_budget import equal_budget_masks
    from safecircuits.units.overlap import enrichment as concentrated
    from safecircuits.units.overlap import mask_overlap
    from safecircuits.units.scores import parameters_per_unit

    block = None if layers is None else layer_range(layers)
    if budget is not None and block is None:
        raise ValueError("masks of equal budget are of units and layers: give --layers FIRST,LAST")
    chosen = groups_of(run, groups)
    folder = run.begin()
    model = run.model()
    require_own(chosen, model)
    found = concentrated(chosen[group], block, sites=chosen.sites, draws=draws, seed=run.seed)
    folder.result("enrichment", found)
    folder.table("enrichment", found.to_frame(), main=True)
    folder.figure("enrichment", found.plot(axis((4.2, 3.0))), of=found)
    run.say(str(found))
    above = [layer for layer, (q, n) in enumerate(zip(found.q, found.total, strict=True)) if q < 0.05 and n]
    run.answer(group=found.group, units=int(found.total.sum()), layers_above_chance=above)
    if block is not None:
        overlap = mask_overlap(chosen[group], FreezeMask.layers(block, chosen.shape))
        folder.result("overlap", overlap)
        run.say(f"{group} and layers {block}: {overlap}")
    if budget is not None and block is not None:
        masks = equal_budget_masks(chosen, block, parameters_per_unit(model), budget=budget, seed=run.seed)
        for name, mask in masks.items():
            mask.save(folder.file(f"freeze_{name}.safetensors"))
            run.say(f"freeze_{name}: {100 * mask.share_of_parameters(model):.2f} % of the parameters")
