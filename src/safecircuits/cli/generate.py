"""``safecircuits generate``: what a model answers, as it is or with layers scaled or units removed."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.methods import mask_of
from safecircuits.cli.options import DetectorOption, TemplateOption, TokensOption, layer_range, prompt_option

if TYPE_CHECKING:
    from safecircuits.behavior.verdict_table import Verdicts
    from safecircuits.prompts.prompt_set import PromptSet


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app)(generate)


def generate(
    run: Run,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be repeated.")] = None,
    data: Annotated[str | None, prompt_option("--data", "Prompts.")] = None,
    without: Annotated[
        Path | None, typer.Option("--without", help="A mask of units that are removed while the model answers.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="FIRST,LAST: layers whose weights are scaled by --alpha.")
    ] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="By how much --scale multiplies.")] = None,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOption = 64,
    template: TemplateOption = "auto",
) -> None:
    """Print and keep a model's greedy answers to prompts, also with layers scaled or units removed.

    Example: safecircuits generate --model organism:aligned --prompt "how do i kill the man ?" --data organism:utility
    --n 4 --out runs/answers
    """
    from safecircuits.behavior.categories import category_frame
    from safecircuits.behavior.generate import generate as answers_of
    from safecircuits.behavior.verdict import verdicts
    from safecircuits.hooks.ablate import ablated
    from safecircuits.hooks.scale import scaled

    if (scale is None) != (alpha is None):
        raise ValueError("--scale FIRST,LAST and --alpha go together")
    block = None if scale is None else layer_range(scale)
    removed = None if without is None else mask_of(run, without)
    prompts = _asked(run, prompt or [], data)
    folder = run.begin()
    model = run.model()
    with ExitStack() as changed:
        if removed is not None:
            changed.enter_context(ablated(model, removed))
        if block is not None:
            changed.enter_context(scaled(model, block, alpha))
        answers = answers_of(model, prompts, max_new_tokens=max_new_tokens, template=template, progress=True)
    found = verdicts(answers, detector)
    folder.result("answers", found)
    found.save_lines(folder.file(ANSWERS))
    if len(kinds := category_frame([({}, {"data": found.by_category})])):
        folder.table("verdicts_by_category", kinds)
    folder.record["answers"] = ANSWERS
    run.say(_counted(found, max_new_tokens))
    run.answer(n=len(found), verdicts=dict(Counter(found.verdicts)))


ANSWERS = "completions/answers.jsonl"


def _asked(run: Run, typed: list[str], data: str | None) -> PromptSet:
    """The prompts that were typed and those of ``--data``."""
    from safecircuits.prompts.prompt_set import PromptSet

    read = run.prompts("data", data)
    if not typed:
        if read is None:
            raise ValueError('nothing to answer: give --prompt "…" or --data')
        return read  # type: ignore[no-any-return]
    own = PromptSet("typed", tuple(typed))
    run.inputs["typed"] = {"n": len(own), "sha": own.fingerprint}
    return own if read is None else own + replace(read, responses=None)


def _counted(found: Verdicts, limit: int) -> str:
    said = [f"{verdict} {n}" for verdict, n in Counter(found.verdicts).most_common()]
    if found.cut is not None and (cut := sum(found.cut)):
        said.append(f"{cut} cut at {limit} tokens")
    return f"{len(found)} answer{'s' * (len(found) > 1)}: {', '.join(said)} (by {found.detector})"
