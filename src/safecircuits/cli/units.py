"""``safecircuits units``: scores, groups and proofs of SSAH (ICLR 2026) on any model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.options import (
    DetectorOption,
    MaybeMalicious,
    MaybeOverRejection,
    MaybeUtility,
    TemplateOption,
    TokensOption,
    layer_range,
)

if TYPE_CHECKING:
    from safecircuits.prompts import PromptSet
    from safecircuits.sites import HookedModel
    from safecircuits.units.groups import UnitGroups
    from safecircuits.units.scores import UnitScores

app = typer.Typer(help="Safety-critical units: scores, groups, and what shows that a group is what its name says.")


class TokensChoice(StrEnum):
    """Whose activations count."""

    response = "response"
    prompt = "prompt"
    all = "all"


class NormalizeChoice(StrEnum):
    """What is done to scores before they are subtracted."""

    none = "none"
    zscore = "zscore"
    rank = "rank"
    layer_mean = "layer-mean"
    log = "log"


class ShareOfChoice(StrEnum):
    """What shares count."""

    units = "units"
    parameters = "parameters"


class GroupChoice(StrEnum):
    """Groups of units."""

    SCU = "SCU"
    UCU = "UCU"
    CU = "CU"
    RU = "RU"


_WITH_ANSWERS = "A file (csv, json, jsonl, parquet, …), organism:KIND, or a hub data set."
SafetyOption = Annotated[str, typer.Option("--safety", help=f"Harmful prompts with refusals. {_WITH_ANSWERS}")]
AnsweredOption = Annotated[str, typer.Option("--utility", help=f"Harmless prompts with answers. {_WITH_ANSWERS}")]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", help="Normal prompts that an attribution compares with.")
]
MethodOption = Annotated[
    str, typer.Option("--method", help="wifv, ifv, wifn, wanda, magnitude, random, snip, taylor, attribution, …")
]
ScoredTokensOption = Annotated[
    TokensChoice | None, typer.Option("--tokens", help="Whose activations count; the method's own choice if left out.")
]
NormalizeOption = Annotated[NormalizeChoice, typer.Option(help="What is done to scores before they are subtracted.")]
ShareOfOption = Annotated[ShareOfChoice, typer.Option(help="What the shares count.")]
ScuOption = Annotated[float, typer.Option("--scu", help="Share of safety-critical units.")]
UcuOption = Annotated[float, typer.Option("--ucu", help="Share of utility-critical units.")]
RuOption = Annotated[float, typer.Option("--ru", help="Share of redundant units.")]
GroupsOption = Annotated[Path, typer.Option("--groups", help="The run directory of units classify.")]


@run_command(app)
def score(
    run: Run,
    data: Annotated[str, typer.Option("--data", help=f"Prompts with responses. {_WITH_ANSWERS}")],
    method: MethodOption = "wifv",
    tokens: ScoredTokensOption = None,
    reference: ReferenceOption = None,
    top: Annotated[int, typer.Option(help="Units to list, from the highest score down.", min=1)] = 64,
    template: TemplateOption = "auto",
) -> None:
    """Score every MLP neuron and attention head on a data set.

    Example: safecircuits units score --model organism:aligned --data organism:malicious --method wifv --n 60
    --out runs/score
    """
    import pandas as pd

    from safecircuits.report.score_figures import plot_score_map

    sets = {"data": run.prompts("data", data, responses=True)}
    other = run.prompts("reference", reference)
    folder = run.begin()
    found = _scores(run, run.model(), sets, other, method, tokens, template)["data"]
    n = min(top, sum(values.numel() for values in found.scores.values()))
    rows = [
        {"site": site, "layer": layer, "unit": unit, "score": float(found.scores[site][layer, unit])}
        for site, by_layer in found.top(n).items()
        for layer, units in by_layer.items()
        for unit in units
    ]
    highest = pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable")
    folder.result("scores", found)
    folder.table("highest", highest, main=True)
    folder.figure("highest", plot_score_map(found, n, ax=axis()))
    best = highest.iloc[0]
    run.say(
        f"{found.method}, {found.tokens} tokens: highest is {best['site']} unit {best['unit']} of layer "
        f"{best['layer']}; half of the {n} highest lie in layers {_where(highest['layer'])}"
    )


@run_command(app)
def classify(
    run: Run,
    safety: SafetyOption,
    utility: AnsweredOption,
    scu: ScuOption = 0.013,
    ucu: UcuOption = 0.133,
    ru: RuOption = 0.148,
    method: MethodOption = "wifv",
    tokens: ScoredTokensOption = None,
    reference: ReferenceOption = None,
    normalize: NormalizeOption = NormalizeChoice.none,
    share_of: ShareOfOption = ShareOfChoice.units,
    template: TemplateOption = "auto",
) -> None:
    """Sort units into SCU, UCU, CU and RU by shares of all units. Writes a freeze mask of the SCUs, too.

    Example: safecircuits units classify --model organism:aligned --safety organism:malicious --utility organism:utility
    --normalize zscore --n 60 --out runs/units
    """
    from safecircuits.masks import FreezeMask
    from safecircuits.report.unit_figures import plot_unit_map
    from safecircuits.units.groups import classify_units

    sets = {"safety": run.prompts("safety", safety, responses=True)}
    sets["utility"] = run.prompts("utility", utility, responses=True)
    other = run.prompts("reference", reference)
    folder = run.begin()
    scores = _scores(run, run.model(), sets, other, method, tokens, template)
    groups = classify_units(
        scores["safety"],
        scores["utility"],
        scu=scu,
        ucu=ucu,
        ru=ru,
        normalize=normalize.value,
        share_of=share_of.value,
    )
    for name, found in scores.items():
        folder.result(f"{name}_scores", found)
    folder.result("groups", groups)
    folder.table("groups", groups.to_frame(), main=True)
    folder.figure("groups", plot_unit_map(groups, ax=axis((4.2, 3.2))))
    mask = FreezeMask.units(groups, "SCU", provenance={"command": run.command, "model": run.source})
    if mask:
        mask.save(folder.file("freeze.safetensors"))
    run.say(", ".join(f"{group} {100 * share:.2f} %" for group, share in groups.shares().items()))


@run_command(app)
def ablate(
    run: Run,
    groups: GroupsOption,
    malicious: MaybeMalicious = None,
    over_rejection: MaybeOverRejection = None,
    utility: MaybeUtility = None,
    group: Annotated[
        list[GroupChoice] | None, typer.Option("--group", help="Which to remove; may be repeated. SCU, UCU, RU if not.")
    ] = None,
    controls: Annotated[int, typer.Option(help="Draws of as many random units beside each group.", min=0)] = 3,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOption = 16,
    template: TemplateOption = "auto",
) -> None:
    """Remove each group, and as many random units beside it, and measure what is left of safety and utility.

    Example: safecircuits units ablate --model organism:aligned --groups runs/units --malicious organism:malicious
    --utility organism:utility --n 60 --out runs/ablation
    """
    from safecircuits.report.unit_figures import plot_ablation
    from safecircuits.units.ablation import ablate_groups

    sets: Any = {
        name: run.prompts(name, given, responses=name == "utility")
        for name, given in (("malicious", malicious), ("over_rejection", over_rejection), ("utility", utility))
        if given is not None
    }
    if not sets:
        raise ValueError("nothing to measure: give --malicious, --over-rejection or --utility")
    chosen = _groups(run, groups)
    folder = run.begin()
    model = run.model()
    _require_own(chosen, model)
    names = tuple(one.value for one in group) if group else ("SCU", "UCU", "RU")
    found = ablate_groups(
        model,
        chosen,
        names=names,
        controls=controls,
        seed=run.seed,
        resume=folder.work("removals.jsonl"),
        progress=True,
        detector=detector,
        max_new_tokens=max_new_tokens,
        template=template,
        **sets,
    )
    folder.result("ablation", found)
    folder.table("ablation", found.to_frame(), main=True)
    shown = [rate for rate in ("malicious_refused", "over_rejected", "utility") if rate in found.intact.rates]
    folder.figure("ablation", plot_ablation(found, metrics=shown, ax=axis()))
    run.say(f"intact: {found.intact}")
    for row in found.rows:
        run.say(f"without {row.name} ({row.n_units} units): {row.behavior}")


@run_command(app)
def stability(
    run: Run,
    safety: SafetyOption,
    utility: AnsweredOption,
    subset: Annotated[int, typer.Option(help="Prompts of each set in one draw.", min=1)],
    draws: Annotated[int, typer.Option(help="Subsets to compare.", min=2)] = 5,
    scu: ScuOption = 0.013,
    ucu: UcuOption = 0.133,
    ru: RuOption = 0.148,
    method: MethodOption = "wifv",
    tokens: ScoredTokensOption = None,
    normalize: NormalizeOption = NormalizeChoice.none,
    template: TemplateOption = "auto",
) -> None:
    """Would other prompts have found the same units? Groups on random subsets of both sets, compared pair by pair.

    Example: safecircuits units stability --model organism:aligned --safety organism:malicious
    --utility organism:utility --subset 30 --draws 3 --n 60 --out runs/stability
    """
    from safecircuits.report.score_figures import plot_stability
    from safecircuits.units.stability import calibration_subsets
    from safecircuits.units.stability import stability as compare

    sets = [run.prompts(n, given, responses=True) for n, given in (("safety", safety), ("utility", utility))]
    subsets = calibration_subsets(*sets, n=subset, draws=draws, seed=run.seed)
    folder = run.begin()
    found = compare(
        run.model(),
        subsets,
        scu=scu,
        ucu=ucu,
        ru=ru,
        method=method,  # type: ignore[arg-type]  # checked there
        normalize=normalize.value,
        tokens=tokens.value if tokens else None,
        template=template,
        progress=True,
    )
    folder.result("stability", found)
    folder.table("stability", found.to_frame(), main=True)
    for name in found.jaccard:
        folder.figure(f"stability_{name}", plot_stability(found, name, ax=axis((4.2, 4.2))))
    for row in found.to_frame().itertuples(index=False):
        run.say(f"{row.what}: mean {row.mean:.2f}, least {row.least:.2f}, by chance {row.chance:.2f}")


@run_command(app)
def transfer(
    run: Run,
    after: Annotated[str, typer.Option("--after", help="The model after training; --model is before it.")],
    safety: SafetyOption,
    utility: AnsweredOption,
    scu: ScuOption = 0.013,
    ucu: UcuOption = 0.133,
    ru: RuOption = 0.148,
    method: MethodOption = "wifv",
    tokens: ScoredTokensOption = None,
    normalize: NormalizeOption = NormalizeChoice.none,
    share_of: ShareOfOption = ShareOfChoice.units,
    threshold: Annotated[float, typer.Option(help="Flows below this share of all units are not drawn.")] = 0.001,
    template: TemplateOption = "auto",
) -> None:
    """Which units changed group in training? Both models classified with the same data and shares.

    Example: safecircuits units transfer --model organism:base --after organism:aligned --safety organism:malicious
    --utility organism:utility --n 60 --out runs/transfer
    """
    from safecircuits.units.groups import classify_units
    from safecircuits.units.transfer import transfer_of

    sets = {"safety": run.prompts("safety", safety, responses=True)}
    sets["utility"] = run.prompts("utility", utility, responses=True)
    folder = run.begin(run.source, after)

    def groups(source: str) -> UnitGroups:
        scores = _scores(run, run.model(source), sets, None, method, tokens, template)
        pair = scores["safety"], scores["utility"]
        return classify_units(*pair, scu=scu, ucu=ucu, ru=ru, normalize=normalize.value, share_of=share_of.value)

    both = [groups(source) for source in (run.source, after)]
    found = transfer_of(*both)
    for name, one in zip(("before", "after"), both, strict=True):
        folder.result(f"groups_{name}", one)
    folder.result("transfer", found)
    folder.table("transfer", found.to_frame(threshold), main=True)
    folder.figure("transfer", found.plot(axis((5.2, 3.6)), threshold=threshold))
    run.say(str(found))


@run_command(app, prompts=False)
def enrichment(
    run: Run,
    groups: GroupsOption,
    layers: Annotated[str | None, typer.Option("--layers", help="FIRST,LAST: the safety layers, as a whole.")] = None,
    group: Annotated[GroupChoice, typer.Option("--group", help="Whose units.")] = GroupChoice.SCU,
    draws: Annotated[int, typer.Option(help="Permutations.", min=1)] = 10_000,
    budget: Annotated[
        float | None, typer.Option(help="Also write masks of this share of all units' parameters, to freeze.")
    ] = None,
) -> None:
    """Are safety-critical units concentrated in the safety layers? Counts by layer against chance, overlap of both.

    Example: safecircuits units enrichment --model organism:aligned --groups runs/units --layers 3,5
    --out runs/enrichment
    """
    from safecircuits.masks import FreezeMask
    from safecircuits.units.enrichment import enrichment as concentrated
    from safecircuits.units.enrichment import equal_budget_masks, mask_overlap
    from safecircuits.units.scores import parameters_per_unit

    block = None if layers is None else layer_range(layers)
    if budget is not None and block is None:
        raise ValueError("masks of equal budget are of units and layers: give --layers FIRST,LAST")
    chosen = _groups(run, groups)
    folder = run.begin()
    model = run.model()
    _require_own(chosen, model)
    found = concentrated(chosen, block, group=group.value, draws=draws, seed=run.seed)
    folder.result("enrichment", found)
    folder.table("enrichment", found.to_frame(), main=True)
    folder.figure("enrichment", found.plot(axis((4.2, 3.0))))
    run.say(str(found))
    if block is not None:
        overlap = mask_overlap(FreezeMask.units(chosen, group.value), FreezeMask.layers(block, chosen.shape))
        folder.result("overlap", overlap)
        run.say(f"{group.value} and layers {block}: {overlap}")
    if budget is not None and block is not None:
        masks = equal_budget_masks(chosen, block, parameters_per_unit(model), budget=budget, seed=run.seed)
        for name, mask in masks.items():
            mask.save(folder.file(f"freeze_{name}.safetensors"))
            run.say(f"freeze_{name}: {100 * mask.share_of_parameters(model):.2f} % of the parameters")


def _scores(
    run: Run,
    model: HookedModel,
    sets: dict[str, PromptSet],
    reference: PromptSet | None,
    method: str,
    tokens: TokensChoice | None,
    template: str,
) -> dict[str, UnitScores]:
    """Scores on each set; those of an attribution are of one and the same choice between refusing and answering."""
    from safecircuits.units.answer_tokens import find_answer_tokens
    from safecircuits.units.importance import score_units
    from safecircuits.units.scores import ATTRIBUTION_METHODS

    options: Any = {
        "method": method,
        "tokens": tokens.value if tokens else None,
        "seed": run.seed,
        "template": template,
        "progress": True,
    }
    if method in ATTRIBUTION_METHODS and reference is not None:
        first = next(iter(sets.values()))
        options["answers"] = find_answer_tokens(model, first, reference, template=template)
        options["reference"] = reference
    return {name: score_units(model, data, **options) for name, data in sets.items()}


def _groups(run: Run, path: Path) -> UnitGroups:
    """The classification in a run directory, or in the folder of a result; its contents are an input of the run."""
    import hashlib

    from safecircuits.units.groups import UnitGroups

    inside = path / "results" / "groups"
    folder = inside if inside.is_dir() else path
    if not folder.is_dir():
        raise ValueError(f"--groups {str(path)!r} is no folder: give the --out of safecircuits units classify")
    found = UnitGroups.load(folder)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()))
    run.inputs["groups"] = {"source": str(path), "sha": digest.hexdigest()[:16]}
    return found


def _require_own(groups: UnitGroups, model: HookedModel) -> None:
    from safecircuits.sites import ModelShape

    ModelShape.of(model).require_same(groups.shape, "the classification in --groups")


def _where(layers: Any) -> str:
    """The layers that hold half of the units, most first."""
    counts = layers.value_counts()
    enough = int((counts.cumsum() < counts.sum() / 2).sum()) + 1
    return ", ".join(str(layer) for layer in sorted(counts.index[:enough]))
