"""``safecircuits direction``: the refusal direction, found, taken out of a running model, and out of the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.declared import Of
from safecircuits.cli.earlier import digest, result_folder
from safecircuits.cli.found_on import keep_found_on, say_overlaps_with
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.measured import Measured
from safecircuits.cli.options import DetectorOption, MaliciousOption, NormalOption, TemplateOption, TokensOrNeededOption

if TYPE_CHECKING:
    from safecircuits.behavior.judge import JudgeDetector
    from safecircuits.behavior.measured import Behavior
    from safecircuits.direction.refusal import RefusalDirection
    from safecircuits.direction.vector import Direction

app = typer.Typer(help="The refusal direction: find it, ablate or add it, or remove it from the weights.")

RULE = "direction.refusal:refusal_direction.rule"
FoundOption = Annotated[Path, typer.Option("--direction", help="The run directory of direction find.")]
RuleOption = Annotated[Any, Of(RULE, "Another rule than the one it was found by.", optional=True)]


@dataclass(frozen=True)
class Answers:
    """How answers are written and judged."""

    detector: DetectorOption = "opening"
    max_new_tokens: TokensOrNeededOption = None
    template: TemplateOption = "auto"

    def by(self, judge: JudgeDetector | None) -> dict[str, Any]:
        """As ``evaluate`` takes them, with a judge in the detector's place."""
        return vars(self) | ({} if judge is None else {"detector": judge})


@run_command(app)
def find(
    run: Run,
    malicious: MaliciousOption,
    normal: NormalOption,
    judging: JudgeOptions,
    rule: Annotated[Any, Of(RULE, "How one of the candidates is chosen on held-out prompts.")],
    ablation: Annotated[
        Any,
        Of(
            "direction.refusal:refusal_direction.ablation",
            "Candidates are taken out everywhere, or put to the harmless mean after their layer.",
        ),
    ],
    controls: Annotated[int, typer.Option(help="Draws of random directions, and of shuffled labels.", min=0)] = 3,
    detector: DetectorOption = "opening",
    template: TemplateOption = "auto",
) -> None:
    """Find the direction in which harmful prompts differ from harmless ones, and choose it on held-out prompts.

    If no candidate passes, the run says how many each filter rejected, and which rule to try next.

    Example: safecircuits direction find --model organism:aligned --malicious organism:malicious
    --normal organism:normal --rule bypass --ablation affine --n 60 --out runs/direction
    """
    from safecircuits.direction.refusal import refusal_direction

    harmful, harmless = run.prompts("malicious", malicious), run.prompts("normal", normal)
    judge = judging.made(run)
    folder, by = judging.begin(run, judge), detector if judge is None else judge
    options: dict[str, Any] = {"rule": rule, "ablation": ablation, "controls": controls, "seed": run.seed}
    found = refusal_direction(run.model(), harmful, harmless, detector=by, template=template, progress=True, **options)
    keep_found_on(folder, malicious=harmful, normal=harmless)
    folder.result("direction", found)
    folder.table("candidates", found.to_frame(), main=True)
    folder.figure("direction", found.plot(axis()), of=found)
    run.say(found.verdict)
    for kind, draws in found.controls.items():
        means = ", ".join(
            f"{name} {value:.2f}"
            for name, value in zip(("bypass", "induce", "kl"), draws.mean(0).tolist(), strict=True)
        )
        run.say(f"{kind} directions of equal length ({len(draws)} draws): {means}")
    run.answer(layer=found.layer, position=found.position, rule=rule, ablation=ablation)


@run_command(app)
def evaluate(
    run: Run,
    direction: FoundOption,
    measured: Measured,
    answers: Answers,
    judging: JudgeOptions,
    rule: RuleOption = None,
    to: Annotated[
        Any,
        Of(
            "direction.interventions:direction_ablated.to",
            "Take all of it out everywhere, or put it to the harmless mean after its layer; as it was found if not "
            "given.",
            optional=True,
        ),
    ] = None,
    added: Annotated[bool, typer.Option("--added", help="Add it after its layer, too.")] = False,
    controls: Annotated[int, typer.Option(help="Random directions of equal length beside it.", min=0)] = 3,
) -> None:
    """Ablate the direction, and random ones as a control: refusal rates, utility, and KL to the intact model.

    Example: safecircuits direction evaluate --model organism:aligned --direction runs/direction
    --malicious organism:malicious --utility organism:utility --n 60 --out runs/without
    """
    from safecircuits.behavior.evaluate import evaluate as behavior_of
    from safecircuits.direction.interventions import direction_ablated, direction_added
    from safecircuits.units.ablation import measure_in

    given = measured.require(run)
    judge = judging.made(run, given)
    sets = given | answers.by(judge)
    found = found_in(run, direction)
    chosen = _chosen(found, rule)
    judging.begin(run, judge)
    say_overlaps_with(run, direction, sets)
    model = run.model()
    how: Any = to or ("zero" if found.ablation == "zero" else "harmless")

    def without(one: Direction) -> AbstractContextManager[None]:
        return direction_ablated(model, one, to=how, layers=None if how == "zero" else [one.layer])

    contexts: dict[str, AbstractContextManager[None]] = {"without it": without(chosen)}
    contexts |= {
        f"without a random one, draw {draw + 1}": without(found.directions.random(chosen, seed=run.seed + draw))
        for draw in range(controls)
    }
    if added:
        contexts["added"] = direction_added(model, chosen)
    rows = {"intact": behavior_of(model, **sets), **measure_in(model, contexts, progress=True, **sets)}
    _write(run, rows, f"What the model does without the {chosen}")


@run_command(app)
def export(
    run: Run,
    direction: FoundOption,
    measured: Measured,
    answers: Answers,
    judging: JudgeOptions,
    rule: RuleOption = None,
) -> None:
    """Remove the direction from every matrix that writes to the residual stream; the checkpoint is OUT/model.

    With prompts, the model is measured before and after.

    Example: safecircuits direction export --model organism:aligned --direction runs/direction
    --malicious organism:malicious --utility organism:utility --n 60 --out runs/orthogonalised
    """
    import pandas as pd

    from safecircuits.behavior.divergence import divergences, references_of
    from safecircuits.behavior.evaluate import evaluate as behavior_of
    from safecircuits.direction.orthogonal_weights import orthogonalised
    from safecircuits.model.load import save_pretrained

    sets = measured.read(run)
    chosen = _chosen(found_in(run, direction), rule)
    judge = judging.made(run, sets)
    folder = judging.begin(run, judge)
    say_overlaps_with(run, direction, sets)
    model = run.model()
    edited = orthogonalised(model, chosen)
    save_pretrained(edited, folder.folder / "model")
    folder.files_in("model")
    run.say(f"model: {run.source} that can no longer write the {chosen}")
    if not sets:
        row = {"layer": chosen.layer, "position": chosen.position, "length": float(chosen.vector.norm())}
        folder.table("direction", pd.DataFrame([row]), main=True)
        return
    from dataclasses import replace

    sets |= answers.by(judge)
    references = references_of(model, sets)
    after = replace(behavior_of(edited, unchanged=model, **sets), kl=divergences(references, edited))
    _write(run, {"intact": behavior_of(model, **sets), "orthogonalised": after}, "Rates before and after")


def found_in(run: Run, path: Path) -> RefusalDirection:
    """The direction in a run directory, or in the folder of a result; its contents are an input of the run."""
    from safecircuits.direction.refusal import RefusalDirection

    folder = result_folder(path, "direction")
    if not (folder / "result.json").is_file():
        raise ValueError(f"--direction {str(path)!r} holds none: give the --out of safecircuits direction find")
    run.inputs["direction"] = {"source": str(path), "sha": digest(folder)}
    return RefusalDirection.load(folder)


def _chosen(found: RefusalDirection, rule: str | None) -> Direction:
    return found.chosen if rule is None else found.choose(rule)  # type: ignore[arg-type]


def _write(run: Run, rows: dict[str, Behavior], shows: str) -> None:
    import pandas as pd

    from safecircuits.behavior.categories import category_frame
    from safecircuits.behavior.change import BehaviorChange
    from safecircuits.plots.rates import plot_behavior

    folder = run.directory
    assert folder is not None
    for name, behavior in rows.items():
        folder.result(name.replace(" ", "_").replace(",", ""), behavior)
        run.say(f"{name}: {behavior}")
        run.answer(**{name.replace(" ", "_").replace(",", ""): behavior.record()})
    table = [{"model": name, **behavior.figures, **behavior.kl_means} for name, behavior in rows.items()]
    folder.table("rates", pd.DataFrame(table), main=True)
    changes = {name: BehaviorChange(rows["intact"], after) for name, after in rows.items() if name != "intact"}
    for name, change in changes.items():
        run.say("\n".join(f"{name}: {one.name} {one.difference}" for one in change.changes))
    for name, frames in (
        ("changes", {of: change.to_frame() for of, change in changes.items()}),
        ("changes_by_category", {of: change.categories() for of, change in changes.items()}),
    ):
        if found := [frame.assign(model=of) for of, frame in frames.items() if len(frame)]:
            folder.table(name, pd.concat(found, ignore_index=True))
    kinds = category_frame(({"model": name}, behavior.by_category) for name, behavior in rows.items())
    if len(kinds):
        folder.table("rates_by_category", kinds)
    folder.figure(
        "rates", plot_behavior(dict(rows), ax=axis((4.2, 0.85 + 0.42 * len(rows)))), of=rows.values(), shows=shows
    )
