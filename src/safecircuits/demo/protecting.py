"""The station of the demo that protects: the same fine-tuning with different parts frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from safecircuits.base.stats import mean_interval, rate_interval
from safecircuits.base.vocabulary import LayerRange
from safecircuits.demo.bench import REFUSAL_TOKENS, SUBJECT, Bench
from safecircuits.demo.parts import Results
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import ModelShape
from safecircuits.studies.arms import Arm
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.outcome import FinetuningStudy, StudyRun
from safecircuits.studies.scenarios import organism_new_task
from safecircuits.studies.ssah import scu_top_cu
from safecircuits.units.groups import UnitGroups


def finetune_arms(bench: Bench, layers: LayerRange, groups: UnitGroups) -> Results:
    """What a new task leaves of refusal, by what is frozen: nothing, layers, units, and as much drawn by seed."""
    shape = ModelShape.of(bench.model)
    s = bench.settings
    arms = _arms(layers, groups, shape, s.top_cu)
    study = bench.run.kept(
        "finetuning",
        FinetuningStudy,
        lambda: finetuning_study(
            SUBJECT,
            [replace(organism_new_task(seed=s.seed), held_out=bench.sets["new_task", "test"])],
            list(arms.values()),
            malicious=bench.prompts("malicious", s.malicious),
            over_rejection=bench.prompts("over_rejection", s.over_rejection),
            utility=bench.prompts("utility", s.utility),
            evaluation={"refusal_tokens": REFUSAL_TOKENS},
            seeds=s.seeds,
            settings=s.finetuning,
            points=1,
            curve_prompts=1,
            out=bench.run.work("finetuning"),
            **bench.placing,
        ),
    )
    bench.run.table("finetuning", study.summary())
    part: Results = {"task": "new_task", "settings": {**s.finetuning, "seeds": list(s.seeds)}}
    part["before"] = _with_new_task(study.runs[0].before)
    for label, arm in arms.items():
        masks = [arm.mask_for(shape, seed) for seed in s.seeds]
        part[arm.name] = _summary(label, arm, masks, [run for run in study.runs if run.arm == arm.name])
    if "random_layers" in part:
        part["random_layers"]["size_matched"] = 2 * len(layers) <= shape.n_layers
    return part


def _arms(layers: LayerRange, groups: UnitGroups, shape: ModelShape, top_cu: float) -> dict[str, Arm]:
    block, scu_cu = FreezeMask.layers(layers), scu_top_cu(groups, top_cu).mask
    n_others = min(len(layers), shape.n_layers - len(layers))
    arms = {
        "nothing frozen": Arm("none", "nothing"),
        "safety layers": Arm("safety_layers", f"layers {layers}", block),
        "other layers": Arm(
            "random_layers", f"{n_others} layers outside {layers}, drawn by seed", block, draw="layers"
        ),
        "SCU + top CU": Arm("scu_cu", f"all SCU and the top {100 * top_cu:g} % of CU", scu_cu),
        "random units": Arm("random", "as many units of each site, drawn by seed", scu_cu, draw="units"),
    }
    if n_others == 0:
        del arms["other layers"]
    return arms


def _summary(label: str, arm: Arm, masks: list[FreezeMask | None], runs: list[StudyRun]) -> Results:
    """Means over the seeds of an arm, what it froze, and whether that stayed as it was."""
    summary: Results = {"label": label, "frozen": arm.frozen}
    measured = [_with_new_task(run.figures) | {"train_loss": run.train_loss} for run in runs]
    for key in measured[0]:
        values = [figures[key] for figures in measured]
        over = mean_interval if key == "train_loss" else rate_interval
        mean, low, high = over(torch.tensor(values, dtype=torch.float64))
        summary |= {key: mean, f"{key}_interval": [low, high], f"{key}_seeds": values}
    summary["share_of_units"] = sum(mask.share_of_units() if mask else 0.0 for mask in masks) / len(masks)
    summary["share_of_parameters"] = sum(run.share_frozen for run in runs) / len(runs)
    # With nothing frozen there is nothing that could have moved.
    summary["frozen_bit_identical"] = all(run.frozen_bit_identical is not False for run in runs)
    return summary


def _with_new_task(figures: Mapping[str, float]) -> dict[str, float]:
    """A study's figures under the demo's names."""
    return {key: figures[key] for key in ("malicious_refused", "over_rejected", "utility")} | {
        "new_task": figures["task_score"]
    }
