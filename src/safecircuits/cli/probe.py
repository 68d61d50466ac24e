"""``safecircuits probe``: the reasoning direction of one model or several (SSAH, ICLR 2026)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from safecircuits.cli.declared import Of
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.options import DetectorOption, MaliciousOption, TemplateOption, TokensOrNeededOption, named

ENDED = "Answers that end early keep their last state, or are left out."


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app)(probe)


def probe(
    run: Run,
    malicious: MaliciousOption,
    judging: JudgeOptions,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", help="Another model, as NAME=MODEL; may be repeated.")
    ] = None,
    benign_suffix: Annotated[
        list[str] | None, typer.Option(help="Opening of a refusal; may be repeated. The paper's unless given.")
    ] = None,
    malicious_suffix: Annotated[
        list[str] | None, typer.Option(help="Opening of an answer; may be repeated. The paper's unless given.")
    ] = None,
    suffix_in: Annotated[
        Any, Of("direction.variants:Where", "Suffixes where the answer starts, or at the end of the prompt.")
    ] = "answer",
    steps: Annotated[str, typer.Option(help="Numbers of generated tokens.")] = "2,4,6,8,10",
    state: Annotated[
        Any, Of("direction.probe:probe_direction.pool", "At the last generated token, or the mean over all of them.")
    ] = "last",
    baseline: Annotated[
        Any, Of("direction.probe:probe_direction.baseline", "Subtract the state at the end of the query alone.")
    ] = "none",
    ended: Annotated[
        Any,
        Of("direction.probe:probe_direction.ended", ENDED),
    ] = "hold",
    layer: Annotated[int, typer.Option(help="Block of the figure by tokens and of the verdicts; -1 is the last.")] = -1,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    template: TemplateOption = "auto",
) -> None:
    """Which opening moves the hidden states less, a refusing or a complying one, by generated token and block?

    Example: safecircuits probe --model organism:aligned --compare unaligned=organism:unaligned
    --malicious organism:malicious --benign-suffix "i cannot" --malicious-suffix "take the" --state mean --n 60
    --out runs/probe
    """
    import pandas as pd

    from safecircuits.behavior.categories import category_frame
    from safecircuits.direction.compare import compare_directions
    from safecircuits.direction.variants import BENIGN, MALICIOUS, Suffixes

    others = named(compare or [], "--compare")
    subject = run.source.rpartition(":")[2].rstrip("/").rpartition("/")[2]
    if subject in others:
        raise ValueError(f"--compare {subject!r} has the name of --model; give it another NAME=")
    sources = {subject: run.source, **others}
    suffixes = Suffixes(tuple(benign_suffix or BENIGN), tuple(malicious_suffix or MALICIOUS), suffix_in)
    asked = _whole_numbers(steps)
    prompts = run.prompts("malicious", malicious)
    judge = judging.made(run)
    folder = judging.begin(run, judge, *sources.values())
    found = compare_directions(
        {name: lambda source=source: run.model(source) for name, source in sources.items()},  # type: ignore[misc]
        prompts,
        suffixes=suffixes,
        steps=asked,
        pool=state,
        baseline=baseline,
        ended=ended,
        detector=detector if judge is None else judge,
        max_new_tokens=max_new_tokens,
        template=template,
        progress=True,
    )
    folder.result("probe", found)
    folder.table("probe", found.to_frame(), main=True)
    each = found.probes.items()
    known = {} if prompts.categories is None else {"category": prompts.categories}
    verdicts = {
        name: {
            "prompt": prompts.prompts,
            **known,
            "answer": one.answers.texts,
            "refused": one.refused.tolist(),
            "measured": one.measured(layer).tolist(),
            "leans_to_refusing": one.leans_to_refusing(layer).tolist(),
        }
        for name, one in each
    }
    frames = [pd.DataFrame(columns).assign(model=name) for name, columns in verdicts.items()]
    folder.table("verdicts", pd.concat(frames, ignore_index=True))
    kinds = [({"model": name}, {"malicious": one.judged.by_category}) for name, one in each if one.judged is not None]
    if len(frame := category_frame(kinds)):
        folder.table("refused_by_category", frame)
    folder.figure("probe", found.figure(layer=layer), of=found)
    run.say(str(found))
    leaning = {name: one.leans_to_refusing(layer).float().mean().item() for name, one in found.probes.items()}
    run.answer(
        leans_to_refusing=leaning,
        refused={name: one.refused.float().mean().item() for name, one in found.probes.items()},
        beside={name: one.tally.record("") for name, one in found.probes.items() if one.tally is not None},
    )
    if len(sources) > 1 and all(one.measured(layer).any() for one in found.probes.values()):
        table = found.verdicts(layer)
        run.say(
            f"all models: verdict agrees with the answer in {100 * float(table.agreement[0, 1]):.1f} % "
            f"(kappa {float(table.kappa[0, 1]):.2f})"
        )


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--steps are whole numbers with commas between them, such as 2,4,6, not {text!r}") from None
