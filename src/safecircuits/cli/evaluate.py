"""``safecircuits evaluate``: what a model refuses, what it gets right, and how far refusal detectors agree on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.distance import LOOKED_AT, Distance
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.measured import Measured
from safecircuits.cli.options import DetectorOption, TemplateOption, TokensOrNeededOption

if TYPE_CHECKING:
    from safecircuits.behavior.completions import Completions
    from safecircuits.model.sites import HookedModel
    from safecircuits.prompts.prompt_set import PromptSet
    from safecircuits.results.run import RunDirectory


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app)(evaluate)


def evaluate(
    run: Run,
    measured: Measured,
    judging: JudgeOptions,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="The model as it was before: how far, by KL divergence, next tokens are from that one's, on harmful "
            f"prompts and on harmless ones, the first {LOOKED_AT} of each. Answers that it finds to be no language are "
            "incoherent; it is loaded a second time for that.",
        ),
    ] = None,
    kl_tokens: Annotated[
        int, typer.Option("--kl-tokens", help="Of the reference's answers, on which that is measured.", min=1)
    ] = 8,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Refusal of harmful prompts, over-rejection of harmless ones, exact answers; and all refusal detectors compared.

    With --reference also how far the model has moved from the one that it was trained from.

    Example: safecircuits evaluate --model organism:aligned --malicious organism:malicious
    --over-rejection organism:over_rejection --utility organism:utility --n 100 --out runs/evaluate
    """
    from safecircuits.behavior.agreement_table import agreement
    from safecircuits.behavior.evaluate import (
        UTILITY_TOKENS,
        answer_tokens,
        answered,
        behavior_of,
        judged,
        notice_long_answers,
    )
    from safecircuits.behavior.verdict import notice_needed

    sets: dict[str, PromptSet] = measured.require(run)
    judge = judging.made(run, sets)
    n_judged = sum(len(prompts) for name, prompts in sets.items() if name != "utility")
    needed = max_new_tokens or notice_needed(detector if judge is None else judge, n_judged)
    if "utility" in sets:
        sets["utility"].require_responses()
    if reference is None and "kl_tokens" in run.chosen:
        raise ValueError("--kl-tokens is of the answers of --reference, which is not given")
    folder = judging.begin(run, judge, run.source, *([] if reference is None else [reference]))
    far = None if reference is None else Distance(run.model(reference), sets, template, kl_tokens)
    model = run.model()
    if "utility" in sets:
        notice_long_answers(model, sets["utility"], max_new_tokens or UTILITY_TOKENS)
    options = {"max_new_tokens": needed, "template": template}
    longer = {"utility": {"max_new_tokens": answer_tokens(max_new_tokens or UTILITY_TOKENS)}}
    answers = {
        name: _answers(folder, model, name, prompts, options | longer.get(name, {})) for name, prompts in sets.items()
    }
    kl = {} if far is None else far.of(model)
    by: Any = detector if judge is None else judge
    if reference is None:
        found = judged(answers, by)
    else:
        del model  # one at a time is in memory
        found = judged(answers, by, unchanged=run.model(reference), template=template)
    for name, verdicts in found.items():  # what was only completions until now
        verdicts.save_lines(folder.folder / "completions" / f"{name}.jsonl")
    right = answered(answers["utility"], sets["utility"].require_responses()) if "utility" in answers else None
    if right is not None:
        right.save_lines(folder.folder / "completions" / "utility.jsonl")
    behavior = behavior_of(found, right)
    if far is not None:
        behavior = replace(behavior, kl=kl)
        folder.table("kl", far.table(behavior.kl))
    _write(run, folder, behavior, judging.judge or detector)
    if found:
        import pandas as pd

        frames, counts, kinds = [], [], []
        for name in found:
            table = agreement(answers[name])
            folder.result(f"agreement_{name}", table)
            frames.append(table.to_frame().assign(set=name))
            kinds.append(table.categories().assign(set=name))
            counts += [
                {"set": name, "detector": said, "refused": of.refuses, "share": of.refuses / of.n, **of.record("")}
                for said, of in zip(table.detectors, table.tallies, strict=True)
            ]
        folder.table("detectors", pd.DataFrame(counts))
        if any(map(len, kinds)):
            folder.table("detectors_by_category", pd.concat(kinds, ignore_index=True))
        folder.table("agreement", pd.concat(frames, ignore_index=True))


def _answers(
    folder: RunDirectory, model: HookedModel, name: str, prompts: PromptSet, options: dict[str, Any]
) -> Completions:
    """Completions of a set, those of an interrupted run if it got so far; kept to be judged again."""
    from safecircuits.behavior.completions import Completions
    from safecircuits.behavior.generate import generate

    path = folder.folder / "completions" / f"{name}.jsonl"
    if folder.resumed and path.exists():
        before = Completions.load(path)
        answers = Completions(prompts, before.texts, ended=before.ended, tokens=before.tokens)
    else:
        answers = generate(model, prompts, progress=True, **options)
        answers.save(path)
    folder.file(f"completions/{name}.jsonl")
    return answers


def _write(run: Run, folder: RunDirectory, behavior: Any, detector: str) -> None:
    from safecircuits.plots.rates import plot_behavior

    rates = behavior.to_frame().rename(columns={"what": "measure", "rate": "share"})
    rates["judged_by"] = ["exact match" if name == "utility" else detector for name in rates["measure"]]
    folder.result("behavior", behavior)
    folder.table("rates", rates, main=True)
    folder.figure("behavior", plot_behavior({run.source: behavior}, ax=axis((4.2, 1.4))), of=behavior)
    run.answer(**behavior.record())
    for said in str(behavior).split("), "):
        run.say(said if said.endswith(")") or "(" not in said else f"{said})")
