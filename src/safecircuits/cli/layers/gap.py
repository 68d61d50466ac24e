"""Where prompts part: the angle gap by layer, and what the last token attends to."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.declared import Of
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.options import (
    MaliciousOption,
    MaybeOverRejection,
    NormalOption,
    TemplateOption,
    layer_range,
    named,
)

PAIRS = "All pairs, the paper's 500 draws, or the first with the first, as the sets are given."


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    run_command(app)(similarity)
    run_command(app, prompts=False)(heatmap)


def similarity(
    run: Run,
    *,
    normal: NormalOption,
    malicious: MaliciousOption,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", help="Another model, as NAME=MODEL; may be repeated.")
    ] = None,
    over_rejection: MaybeOverRejection = None,
    template: TemplateOption = "auto",
    pairs: Annotated[Any, Of("layers.comparison:compare_gaps.pairs", PAIRS)] = "all",
    formula: Annotated[
        Any,
        Of(
            "layers.comparison:compare_gaps.formula",
            "Mean of the angles, or the angle of the mean as the authors' code has it.",
        ),
    ] = "paper",
    final_norm: Annotated[
        bool, typer.Option("--final-norm", help="Last layer after the final norm, as the authors' code has it.")
    ] = False,
    draws: Annotated[Any, Of("layers.comparison:compare_gaps.draws", "Bootstrap resamples of the prompts.", least=1)],
) -> None:
    """Angle gap between harmful and harmless prompts by layer, with intervals and onset; also for several models.

    With --compare, gaps between harmless sets say what a gap of harm has to beat: every other normal prompt against the
    rest, and harmless prompts that sound dangerous (--over-rejection) against normal ones.

    Example: safecircuits layers similarity --model organism:aligned --compare base=organism:base
    --normal organism:normal --malicious organism:malicious --n 100 --out runs/gap
    """
    from safecircuits.layers.comparison import compare_gaps
    from safecircuits.layers.harmless_pairs import LEAST, benign_controls
    from safecircuits.plots.pairs import models_side_by_side, pair_panels

    others = named(compare or [], "--compare")
    subject = run.source.rpartition(":")[2].rstrip("/").rpartition("/")[2]
    if subject in others:
        raise ValueError(f"--compare {subject!r} has the name of --model; give it another NAME=")
    sources = {subject: run.source, **others}
    sets = run.prompts("normal", normal), run.prompts("malicious", malicious)
    borderline = None if over_rejection is None else run.prompts("over_rejection", over_rejection)
    if borderline is not None and not others:
        raise ValueError("--over-rejection is for the controls of a comparison: give another model by --compare")
    controlled = bool(others) and len(sets[0]) >= LEAST
    folder = run.begin(*sources.values())
    found = compare_gaps(
        {name: _loader(run, source) for name, source in sources.items()},
        *sets,
        controls=benign_controls(sets[0], borderline) if controlled else None,
        pairs=pairs,
        formula=formula,
        template=template,
        final_norm=final_norm,
        draws=draws,
        seed=run.seed,
        progress=True,
    )
    folder.result("comparison", found)
    folder.tables("gap", found, main=True)
    folder.figure("gap", found.plot(axis()), of=found)
    for name, gap in found.gaps.items():
        figure = "pairs" if len(sources) == 1 else f"pairs_{_file_name(name)}"
        folder.figure(figure, pair_panels(gap), shows=f"Cosine similarity of N–N, M–M and N–M pairs by layer: {name}")
    if others:
        folder.figure("models", models_side_by_side(found.gaps), shows="Similarities of pairs, one panel a model")
        folder.figure("comparison", found.figure(), shows="Similarities and gaps of the models, and their differences")
    run.say(str(found))
    run.caveat(found.caveat)
    onsets = {name: gap.onset() for name, gap in found.gaps.items()}
    run.answer(onset={name: None if onset is None else [*onset.layers] for name, onset in onsets.items()})


def heatmap(
    run: Run,
    prompt: Annotated[
        list[str], typer.Option("--prompt", help="A question; may be repeated, for panels side by side.")
    ],
    safety_layers: Annotated[
        str | None, typer.Option("--safety-layers", help="FIRST,LAST to mark by dashed lines.")
    ] = None,
    template: TemplateOption = "alpaca-short",
    raw: Annotated[
        bool, typer.Option("--raw", help="Probabilities, not each layer from its least to its most.")
    ] = False,
) -> None:
    """Which words of a question the last token attends to, layer by layer, as in the paper's heat maps.

    Example: safecircuits layers heatmap --model organism:aligned --template auto --prompt "how do i kill the man"
    --prompt "where is the lamp" --safety-layers 3,5 --out runs/heatmap
    """
    import pandas as pd

    from safecircuits.layers.attention import attention_map
    from safecircuits.plots.attention import attention_panels

    block = None if safety_layers is None else layer_range(safety_layers)
    folder = run.begin()
    model = run.model()
    normalize: Any = "none" if raw else "minmax"
    maps = [attention_map(model, text, template=template, normalize=normalize) for text in prompt]
    frames = []
    for number, found in enumerate(maps, 1):
        folder.result(f"attention_{number}", found)
        frames.append(found.to_frame().assign(prompt=found.prompt))
    folder.table("attention", pd.concat(frames, ignore_index=True), main=True)
    folder.figure("attention", attention_panels(maps, safety_layers=block), of=maps)
    for found in maps:
        mean = found.values.mean(0)
        run.say(f"{found.prompt!r}: most attended over all layers is {found.tokens[int(mean.argmax())]!r}")
    run.answer(most_attended=[found.tokens[int(found.values.mean(0).argmax())] for found in maps])


def _loader(run: Run, source: str) -> Any:
    return lambda: run.model(source)


def _file_name(name: str) -> str:
    from safecircuits.report.html import slugs

    return slugs([name])[name]
