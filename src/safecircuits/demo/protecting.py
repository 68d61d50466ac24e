"""The demo's part that protects: the same fine-tuning with different parts frozen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from safecircuits.base.counted import said
from safecircuits.base.stats import mean_interval
from safecircuits.behavior.stakes import nothing_to_lose
from safecircuits.demo.layers import LOCATED
from safecircuits.demo.settings import SMALL, SUBJECT, Demo
from safecircuits.demo.tuned import rates_of_arms
from safecircuits.demo.units import UNITS
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.papers.conclusion import Conclusion, side_effects
from safecircuits.papers.page import StudyPage, arms_table
from safecircuits.papers.part import Part, Shown
from safecircuits.plots.rates import plot_finetune
from safecircuits.report.sections import Exhibit
from safecircuits.studies.arms import Arm
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.scenarios import organism_new_task
from safecircuits.studies.ssah import scu_top_cu

LABELS = {
    "none": "nothing frozen",
    "safety_layers": "safety layers",
    "random_layers": "other layers",
    "scu_cu": "SCU + top CU",
    "random": "random units",
}


def _arms(study: Demo) -> list[Arm]:
    layers, top_cu, n_layers = study[LOCATED].layers, study.settings.top_cu, study.shape.n_layers
    block, scu_cu = FreezeMask.layers(layers), scu_top_cu(study[UNITS], top_cu).mask
    n_others = min(len(layers), n_layers - len(layers))
    others = f"{n_others} layers outside {layers}, drawn by seed"
    return [
        Arm("none", "nothing"),
        Arm("safety_layers", f"layers {layers}", block),
        *([Arm("random_layers", others, block, draw="layers")] if n_others else []),
        Arm("scu_cu", f"all SCU and the top {100 * top_cu:g} % of CU", scu_cu),
        Arm("random", "as many units of each site, drawn by seed", scu_cu, draw="units"),
    ]


def _tune(study: Demo) -> FinetuningStudy:
    s, arms = study.settings, _arms(study)
    study.let_go()
    sets: dict[str, Any] = {key: study.measured[key] for key in ("malicious", "over_rejection", "utility")}
    return finetuning_study(
        SUBJECT,
        [replace(organism_new_task(seed=s.seed), held_out=study.sets["new_task", "test"])],
        arms,
        **sets,
        evaluation={"refusal_tokens": s.max_new_tokens},
        seeds=s.seeds,
        settings=s.finetuning,
        points=1,
        curve_prompts=1,
        out=study.work("finetuning"),
        **s.placing,
    )


def finetune_record(study: Demo) -> dict[str, Any]:
    """Each arm's rates as ``plot_finetune`` takes them, with those of each seed, and those before."""
    return rates_of_arms(study[FINETUNING], LABELS)


def _show(study: Demo, made: StudyPage) -> None:
    tuned, record = study[FINETUNING], finetune_record(study)
    plot_finetune(record, ax=made.axes("finetune", 0.9 + 0.52 * len(tuned.arms)))
    s = study.settings
    used = f"steps {s.finetune_steps}, batch size {s.finetune_batch}, lr {s.finetune_lr}"
    # With nothing frozen there is nothing that could have moved.
    same = all(run.frozen_bit_identical is not False for run in tuned.runs)
    frozen = "; ".join(f"{LABELS[arm]}: {what}" for arm, what in tuned.frozen.items())
    caption = f"{frozen}. Frozen entries {'are bit-identical' if same else 'changed'} afterwards."
    label = "Rates after fine-tuning in each arm, with seeds, intervals and the rates before"
    made.add(
        "finetune",
        "What fine-tuning leaves",
        "A model that refuses learns a harmless new task, which can wear its refusals away. Each arm freezes another "
        f"part of the model while it learns. Settings: {used}, {len(s.seeds)} seeds.",
        [Exhibit("finetune", label, caption, [arms_table(tuned.summary())])],
    )


def _keeps(study: Demo, arm: str, reference: str) -> tuple[str, str]:
    """Whether ``arm`` keeps more refusal than ``reference``; the seeds pair the runs."""
    tuned = study[FINETUNING]
    if reference not in tuned.arms:
        return "inconclusive", "The located block is the whole model: there is nothing to compare it with."
    ours, theirs = (tuned.of(tuned.scenarios[0], one) for one in (arm, reference))
    pairs = zip(ours, theirs, strict=True)
    differences = [a.figures["malicious_refused"] - b.figures["malicious_refused"] for a, b in pairs]
    mean, low, high = mean_interval(torch.tensor(differences, dtype=torch.float64), within=(-1, 1))

    def percent(one: str, figure: str = "malicious_refused") -> str:
        return said(tuned.means(tuned.scenarios[0], one), figure)

    before, kept = tuned.runs[0].before, tuned.mean(tuned.scenarios[0], reference)
    text = (
        f"After fine-tuning, refusal is {percent(arm)} with {tuned.frozen[arm]} frozen and "
        f"{percent(reference)} with {tuned.frozen[reference]} frozen (before: "
        f"{said(before, 'malicious_refused')}); a difference of {100 * mean:+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}] over {len(ours)} seeds. The new task is "
        f"answered right in {percent(arm, 'task_score')} and {percent(reference, 'task_score')}. "
        f"{side_effects(before, tuned.means(tuned.scenarios[0], arm), 'malicious_refused')}"
    )
    if why := nothing_to_lose(before, "malicious_refused"):
        return "inconclusive", f"{why} {text}"
    if before["malicious_refused"] - kept < SMALL:
        return "inconclusive", f"There was next to no loss to prevent. {text}"
    if reference == "random_layers" and 2 * len(study[LOCATED].layers) > study.shape.n_layers:
        return "unclear", f"{text} The two are not of equal size: the model has too few other layers."
    if low > 0 or high < 0:
        return ("yes" if low > 0 else "no"), text
    return ("no" if max(abs(low), abs(high)) < SMALL else "unclear"), text


def _claim_layers(study: Demo) -> Iterator[Conclusion]:
    keeps = _keeps(study, "safety_layers", "none")
    yield "Freezing the safety layers keeps refusal in fine-tuning", "Safety Layers", *keeps
    keeps = _keeps(study, "safety_layers", "random_layers")
    yield "It is these layers, not as many others", "Safety Layers", *keeps


def _claim_units(study: Demo) -> Iterator[Conclusion]:
    yield "Freezing SCU and the top CU keeps refusal in fine-tuning", "SSAH", *_keeps(study, "scu_cu", "none")
    yield "It is these units, not as many others", "SSAH", *_keeps(study, "scu_cu", "random")


FINETUNING: Part[Demo, FinetuningStudy] = Part(
    "finetuning",
    FinetuningStudy,
    _tune,
    says="fine-tuning arms",
    section=_show,
    claims=_claim_units,
    tables=lambda study: {"finetuning": study[FINETUNING].summary()},
)
FROZEN_LAYERS = Shown[Demo](claims=_claim_layers)
