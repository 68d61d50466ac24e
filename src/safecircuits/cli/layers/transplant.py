"""Layers of one checkpoint put into another."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.measured import Measured
from safecircuits.cli.options import DetectorOption, TemplateOption, TokensOrNeededOption, layer_range, named

SHOWS = "Rates of source, target, and target with transplanted layers"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app)(transplant)


def transplant(
    run: Run,
    source: Annotated[str, typer.Option("--source", help="The model whose layers are put into --model.")],
    block: Annotated[list[str], typer.Option("--block", help="NAME=FIRST,LAST or FIRST,LAST; may be repeated.")],
    measured: Measured,
    judging: JudgeOptions,
    keep_norms: Annotated[bool, typer.Option("--keep-norms", help="The norms of --model stay.")] = False,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Put blocks of one checkpoint's layers into another, and measure safety and utility before and after.

    Example: safecircuits layers transplant --model organism:base --source organism:aligned --block 3,5
    --malicious organism:malicious --utility organism:utility --n 60 --out runs/transplant
    """
    from safecircuits.base.progress import without_bars
    from safecircuits.layers.transplanting import transplant_study
    from safecircuits.model.checkpoint import load_checkpoint
    from safecircuits.plots.rates import plot_behavior

    blocks = {name: layer_range(text) for name, text in named(block, "--block").items()}
    sets = measured.require(run)
    judge = judging.made(run, sets)
    folder = judging.begin(run, judge, source, run.source)
    with without_bars():
        donor, donor_tokenizer = load_checkpoint(source, run.torch_dtype, run.torch_device, None)
        target, tokenizer = load_checkpoint(run.source, run.torch_dtype, run.torch_device, None)
    options: Any = {**sets, "detector": detector if judge is None else judge}
    options |= {"max_new_tokens": max_new_tokens, "template": template}
    found = transplant_study(
        donor,
        target,
        blocks,
        tokenizer=tokenizer or donor_tokenizer,
        backend=run.backend,
        norms=not keep_norms,
        progress=True,
        **options,
    )
    rows = {"target": found.target, **{f"with {row.name}": row.behavior for row in found.rows}, "source": found.source}
    folder.result("transplant", found)
    folder.tables("transplant", found, main=True)
    folder.figure("transplant", plot_behavior(rows, ax=axis((4.2, 0.85 + 0.42 * len(rows)))), shows=SHOWS)
    run.answer(**{name.replace(" ", "_"): behavior.record() for name, behavior in rows.items()})
    for name, behavior in rows.items():
        run.say(f"{name}: {behavior}")
