"""Which layers refuse: scaling sweeps, activation patching, and every block scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.declared import Of
from safecircuits.cli.found_on import keep_found_on, say_overlaps
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.options import (
    ComponentsOption,
    DetectorOption,
    MaliciousOption,
    MaybeMalicious,
    MaybeNormal,
    NormalOption,
    OverRejectionOption,
    TemplateOption,
    TokensOrNeededOption,
    alpha_option,
    layer_range,
)

if TYPE_CHECKING:
    from safecircuits.base.vocabulary import LayerRange
    from safecircuits.behavior.judge import JudgeDetector
    from safecircuits.layers.decision import DecisionLayers
    from safecircuits.layers.similarity import LayerGap
    from safecircuits.layers.sweep_point import SweepPoint
    from safecircuits.model.sites import HookedModel
    from safecircuits.prompts.prompt_set import PromptSet
    from safecircuits.results.run import RunDirectory


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (localize, decide, grid):
        run_command(app)(command)


def localize(
    run: Run,
    *,
    over_rejection: OverRejectionOption,
    judging: JudgeOptions,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            help="FIRST,LAST to start from; else the gap's onset, or the layers that decide, from --normal and "
            "--malicious.",
        ),
    ] = None,
    normal: MaybeNormal = None,
    malicious: MaybeMalicious = None,
    check: Annotated[
        str | None,
        typer.Option("--check", help="Harmful prompts, to count those answered before and with the block scaled."),
    ] = None,
    alpha: Annotated[str, typer.Option("--alpha", help="A number, or search.")] = "search",
    direction: Annotated[
        Any, Of("layers.localization:localize.direction", "Of the search for alpha; up unless given.")
    ] = None,
    reach: Annotated[
        Any, Of("layers.localization:localize.reach", "Layers by which a bound moves to both sides.", least=1)
    ],
    components: ComponentsOption = "all",
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
    mask_anyway: Annotated[
        bool, typer.Option("--mask-anyway", help="Write the mask of a block that is within noise, too.")
    ] = False,
) -> None:
    """Locate the safety layers: scale a block, count over-rejections, move its bounds. Writes a freeze mask, too.

    The search starts at the onset of the gap between --normal and --malicious or, if there is none, at the layers that
    decide (``layers decide``). No mask is written if scaling the block cannot be distinguished from no scaling, unless
    --mask-anyway asks for it.

    A judge is asked about every answer that scaling changed: some twenty to a hundred sets of --over-rejection.
    --judge-calls bounds it, and the same command with a higher limit goes on.

    Example: safecircuits layers localize --model organism:aligned --over-rejection organism:over_rejection
    --normal organism:normal --malicious organism:malicious --n 100 --out runs/localize
    """
    from safecircuits.layers.localization import localize as locate
    from safecircuits.layers.malicious_check import answered_malicious

    given = None if start is None else layer_range(start)
    factor = alpha_option(alpha)
    borderline = run.prompts("over_rejection", over_rejection)
    n_set, m_set = run.prompts("normal", normal), run.prompts("malicious", malicious)
    if given is None and (n_set is None or m_set is None):
        raise ValueError("there is no range to start from: give --start FIRST,LAST, or --normal and --malicious")
    checked = run.prompts("check", check)
    judge = judging.made(run)
    folder, by = judging.begin(run, judge), detector if judge is None else judge
    found_on = {"normal": n_set, "malicious": m_set, "over_rejection": borderline}
    model = run.model()
    begin: Any = given
    instead = ""
    if n_set is not None and m_set is not None:
        gap = _gap(folder, model, n_set, m_set, template)
        begin = given or gap.onset()
        if begin is None:
            begin = _decision(folder, model, n_set, m_set, by, max_new_tokens, template)
            instead = f"the gap has no onset; starting from what decides: {begin.verdict}"
    found = locate(
        model,
        borderline,
        begin,
        alpha=factor,
        direction=direction,
        reach=reach,
        components=components,
        detector=by,
        max_new_tokens=max_new_tokens,
        template=template,
        ordinary=n_set,
        resume=folder.work("sweep.jsonl"),
        progress=True,
    )
    keep_found_on(folder, **found_on)
    say_overlaps(run, found_on, {"check": checked})
    folder.result("localization", found)
    folder.tables("sweeps", found, main=True)
    if found.alpha_trials:
        folder.table("alpha_trials", _trials(found))
    folder.figure("sweeps", found.plot(axis()), of=found)
    run.say(found.verdict)
    run.say(instead)
    run.answer(layers=[*found.layers], located=found.located, alpha=found.alpha, alpha_found=found.alpha_found)
    _tell_of_answers(run, found.baseline)
    if found.located or mask_anyway:
        origin = {"command": run.command, "model": run.source, "located": found.located}
        origin |= {"within_noise": found.within_noise, "resamples": found.resampled.share(found.layers)}
        _freeze(run, folder, model, found.layers, origin)
    else:
        run.say("nothing was located: no freeze mask is written (--mask-anyway writes one)")
    run.caveat(found.caveat)
    if not found.alpha_found:
        run.say(f"no alpha gave the spread that the search looks for; {found.alpha:g} came closest")
    if checked is not None:
        counted = answered_malicious(
            model,
            checked,
            found.layers,
            found.alpha,
            components=components,
            detector=by,
            max_new_tokens=max_new_tokens,
            template=template,
            resume=folder.work("check.jsonl"),
        )
        folder.result("check", counted)
        folder.tables("check", counted)
        run.say(f"harmful prompts {counted}")


def decide(
    run: Run,
    normal: NormalOption,
    malicious: MaliciousOption,
    judging: JudgeOptions,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Find the layers that decide whether to refuse, by activation patching. Writes a freeze mask, too.

    On small models with refusal planted in a known block, this overlaps the block more than the scaling search does; on
    real ones it depends on where the block is (the docs have the measurements).

    Example: safecircuits layers decide --model organism:planted-layers --normal organism:normal
    --malicious organism:malicious --n 100 --out runs/decide
    """
    n_set, m_set = run.prompts("normal", normal), run.prompts("malicious", malicious)
    judge = judging.made(run)
    folder = judging.begin(run, judge)
    model = run.model()
    by = detector if judge is None else judge
    found = _decision(folder, model, n_set, m_set, by, max_new_tokens, template, main=True)
    keep_found_on(folder, normal=n_set, malicious=m_set)
    run.say(found.verdict)
    run.answer(layers=None if found.layers is None else [*found.layers])
    if found.layers is None or found.resampled is None:
        run.say("no freeze mask is written")
        run.caveat(found.caveat)
        return
    origin = {"command": run.command, "model": run.source, "resamples": found.resampled.share(found.layers)}
    _freeze(run, folder, model, found.layers, origin)
    run.caveat(found.caveat)


def grid(
    run: Run,
    over_rejection: OverRejectionOption,
    judging: JudgeOptions,
    normal: MaybeNormal = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Factor on the weights of the block.")] = 1.2,
    max_length: Annotated[int | None, typer.Option(help="Leave out blocks of more layers.", min=1)] = None,
    components: ComponentsOption = "all",
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Scale every block of layers and count over-rejections: what the search by bounds can miss.

    With --normal also how far scaling each block moves the first token on ordinary prompts, by KL divergence. A judge
    is asked about every answer that differs, of up to layers² / 2 blocks: --max-length and --judge-calls bound it.

    Example: safecircuits layers grid --model organism:aligned --over-rejection organism:over_rejection --alpha 1.2
    --n 60 --out runs/grid
    """
    import pandas as pd

    from safecircuits.base.paired import paired_difference
    from safecircuits.layers.grid import scaling_grid
    from safecircuits.plots.grid import plot_grid

    borderline, ordinary = run.prompts("over_rejection", over_rejection), run.prompts("normal", normal)
    judge = judging.made(run)
    folder = judging.begin(run, judge)
    found = scaling_grid(
        run.model(),
        borderline,
        alpha=alpha,
        max_length=max_length,
        components=components,
        detector=detector if judge is None else judge,
        max_new_tokens=max_new_tokens,
        template=template,
        ordinary=ordinary,
        resume=folder.work("grid.jsonl"),
        progress=True,
    )
    rows = []
    best, rivals = found.best, {id(point) for point in found.rivals}
    for point in found.points:
        change, low, high = (
            value * len(point.refused) for value in paired_difference(point.refused, found.baseline.refused)
        )
        assert point.layers is not None
        rows.append(
            {
                "first": point.layers.first,
                "last": point.layers.last,
                "refused": point.count,
                "change": round(change),
                "change_low": round(low, 1),
                "change_high": round(high, 1),
                "degenerate": point.degenerate,
                "best": point is best,
                "within_noise_of_best": id(point) in rivals,
                **point.record(),
            }
        )
    folder.result("grid", found)
    folder.table("grid", pd.DataFrame(rows), main=True)
    if len(kinds := found.categories()):
        folder.table("grid_by_category", kinds)
    folder.figure("grid", plot_grid(found, ax=axis((3.6, 3.0))), of=found)
    run.say(found.verdict)
    run.caveat(found.caveat)
    best_layers = None if best.layers is None else [*best.layers]
    counts = {"refused": int(best.refused.sum()), "unscaled": int(found.baseline.refused.sum())}
    run.answer(layers=best_layers, **counts, n=len(best.refused))
    _tell_of_answers(run, found.baseline)


def _freeze(run: Run, folder: RunDirectory, model: HookedModel, layers: LayerRange, origin: dict[str, Any]) -> None:
    """Write the mask of the layers, and say what it is."""
    from safecircuits.masks.freeze_mask import FreezeMask
    from safecircuits.model.sites import ModelShape

    mask = FreezeMask.layers(layers, ModelShape.of(model), origin)
    mask.save(folder.file("freeze.safetensors"))
    share = 100 * mask.share_of_parameters(model)
    run.say(f"freeze.safetensors: layers {layers}, {share:.2f} % of the model's parameters")


def _gap(folder: RunDirectory, model: HookedModel, normal: PromptSet, malicious: PromptSet, template: str) -> LayerGap:
    from safecircuits.layers.similarity import layer_gap

    gap = layer_gap(model, normal, malicious, template=template, progress=True)
    folder.result("gap", gap)
    folder.table("gap", gap.to_frame())
    folder.figure("gap", gap.plot(axis()), of=gap)
    return gap


def _decision(
    folder: RunDirectory,
    model: HookedModel,
    normal: PromptSet,
    malicious: PromptSet,
    detector: str | JudgeDetector,
    max_new_tokens: int | None,
    template: str,
    *,
    main: bool = False,
) -> DecisionLayers:
    from safecircuits.layers.decision import decision_layers
    from safecircuits.layers.decision_categories import curves_frame

    options: dict[str, Any] = {"detector": detector, "max_new_tokens": max_new_tokens, "template": template}
    found = decision_layers(model, normal, malicious, progress=True, **options)
    folder.result("decision", found)
    folder.tables("decision", found, main=main)
    if len(curves := curves_frame(found.by_category)):
        folder.table("decision_curves_by_category", curves)
    folder.figure("decision", found.plot(axis()), of=found)
    return found


def _tell_of_answers(run: Run, unscaled: SweepPoint) -> None:
    from safecircuits.base.counted import Beside

    run.say(f"the unscaled model's answers: {Beside.of(unscaled.record(), 'refused')}")


def _trials(found: Any) -> Any:
    """Every count of the search for alpha."""
    import pandas as pd

    return pd.DataFrame(
        {
            "alpha": point.alpha,
            "first": point.layers.first,
            "last": point.layers.last,
            "refused": point.count,
            "degenerate": point.degenerate,
            "spread": trial.spread,
            **point.record(),
        }
        for trial in found.alpha_trials
        for point in trial.points
    )
