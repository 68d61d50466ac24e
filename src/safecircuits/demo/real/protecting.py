"""Protecting what was found: the same short fine-tuning with and without frozen layers, and behaviour after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scipy.stats import fisher_exact

from safecircuits.base.paired import LEVEL
from safecircuits.base.text import percent
from safecircuits.behavior.stakes import LEAST
from safecircuits.demo.real.layers import KNOWN, found_block
from safecircuits.demo.real.settings import RealDemo
from safecircuits.demo.tuned import FIGURES, rates_of_arms
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage, arms_table
from safecircuits.papers.part import Part
from safecircuits.plots.rates import plot_finetune
from safecircuits.report.sections import Exhibit
from safecircuits.studies.arms import Arm, full, sppft
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.scenarios import Scenario

TASK = "word problems"
FOUND, PLANTED, OTHERS = "decision layers", "planted place", "other layers"


def _arms(study: RealDemo) -> list[Arm]:
    block = found_block(study)
    arms = [full(), sppft(block, FOUND)]
    if study.planted is not None:
        arms.append(Arm(PLANTED, study.place, study.planted))
    others = f"{len(block)} layers outside {block}, drawn by seed"
    return [*arms, Arm(OTHERS, others, FreezeMask.layers(block), draw="layers")]


def _tune(study: RealDemo) -> FinetuningStudy:
    s, model = study.settings, study.model
    found = finetuning_study(
        model,  # put back after each run, which is quicker than to load it again
        [Scenario(TASK, study.prompts("task"), study.prompts("task, held out"))],
        _arms(study),
        malicious=study.prompts("malicious", s.asked),
        over_rejection=study.prompts("over_rejection", s.asked),
        seeds=s.seeds,
        settings=s.training,
        points=1,
        curve_prompts=1,
        evaluation=s.judging,
        out=study.work("finetuning"),
        backend=s.backend,
    )
    del model
    study.let_go()
    return found


def finetune_record(study: RealDemo) -> dict[str, Any]:
    """Each arm's rates as ``plot_finetune`` takes them, with those of each seed, and those before."""
    s = study.settings
    prompts = dict.fromkeys(FIGURES, s.asked) | {"new_task": s.held_out}
    return rates_of_arms(study[FINETUNING], {"full": "nothing frozen"}, prompts)


def _section(study: RealDemo, made: StudyPage) -> None:
    tuned, s = study[FINETUNING], study.settings
    plot_finetune(finetune_record(study), ax=made.axes("finetune", 0.9 + 0.52 * len(tuned.arms)))
    same = all(run.frozen_bit_identical is not False for run in tuned.runs)
    frozen = "; ".join(f"{arm}: {what}" for arm, what in tuned.frozen.items())
    over = "seeds" if len(s.seeds) > 1 else f"prompts ({s.asked} of each set, {s.held_out} word problems)"
    caption = (
        f"{frozen}. Frozen entries {'are bit-identical' if same else 'changed'} afterwards. Lines: 95 % over {over}."
    )
    made.add(
        "finetune",
        "What fine-tuning leaves",
        f"The model learns a harmless task, word problems with worked answers: {s.steps} steps of {s.batch}, rate "
        f"{s.lr:g}, {len(s.seeds)} seed{'s' if len(s.seeds) > 1 else ''}. New task: answers that end in the right "
        "number. Each arm freezes another part of the model while it learns.",
        [
            Exhibit(
                "finetune", "Rates after fine-tuning in each arm, and before", caption, [arms_table(tuned.summary())]
            )
        ],
    )


def _claims(study: RealDemo) -> Iterator[Conclusion]:
    tuned = study[FINETUNING]
    for arm in tuned.arms[1:]:
        where = KNOWN if arm == PLANTED else "control" if arm == OTHERS else "Safety Layers"
        yield f"Freezing keeps refusal in fine-tuning: {arm}", where, *_keeps(study, tuned, arm)


def _keeps(study: RealDemo, tuned: FinetuningStudy, arm: str) -> tuple[str, str]:
    before = tuned.runs[0].before
    kept, reference = (tuned.mean(TASK, one) for one in (arm, "full"))
    losses = [tuned.mean(TASK, one, "task_loss") for one in (arm, "full")]
    n = study.settings.asked * len(study.settings.seeds)
    counts = [[round(rate * n), n - round(rate * n)] for rate in (kept, reference)]
    p = float(fisher_exact(counts).pvalue)
    text = (
        f"Refused: {percent(before['malicious_refused'])} before, {percent(kept)} after with {tuned.frozen[arm]} "
        f"frozen, {percent(reference)} after with nothing frozen (Fisher’s exact test over {n} prompts, p = {p:.2g}). "
        f"Task loss {before['task_loss']:.2f} before, {losses[0]:.2f} and {losses[1]:.2f} after."
    )
    if len(study.settings.seeds) == 1:
        text += " One seed says nothing of other orders of the data."
    if before["malicious_refused"] - reference < LEAST:
        return "inconclusive", f"There was next to no loss to prevent. {text}"
    return ("unclear" if p >= LEVEL else "yes" if kept > reference else "no"), text


FINETUNING: Part[RealDemo, FinetuningStudy] = Part(
    "finetuning",
    FinetuningStudy,
    _tune,
    says="short fine-tuning with and without frozen layers, and behaviour after it",
    section=_section,
    claims=_claims,
    tables=lambda study: {"finetuning": study[FINETUNING].summary()},
)
