"""The parts of the SSAH study that train: frozen units (Table 2), the alignment budget (Table 4), equal budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from safecircuits.baselines.lora import LoraSettings
from safecircuits.behavior.conditions import pressure
from safecircuits.behavior.evaluate import EvaluationOptions, evaluate
from safecircuits.model.sites import HookedModel
from safecircuits.papers.ssah.parts import SsahStudy
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.run import RunDirectory
from safecircuits.studies.arms import Arm, full
from safecircuits.studies.budget import AlignmentBudget, alignment_budget
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.measure import ExtraMetric
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.scenarios import Scenario, split_off
from safecircuits.studies.ssah import as_many_random, lora_arm, scu_all_cu, scu_top_cu
from safecircuits.training.loop import finetune
from safecircuits.units.equal_budget import equal_budget_masks
from safecircuits.units.groups import GROUPS, UnitGroups

HELD_OUT = 0.1
"""Share of the alignment data's answers that are held out where no others are given."""

BUDGETS = {"a quarter": 0.25, "all": 1.0}
"""Budgets of the comparison with the safety layers, as shares of their parameters."""


def arms_of(study: SsahStudy, lora: LoraSettings | None = None) -> tuple[Arm, ...]:
    """The paper's two settings by every cut: step for step with random units beside them, and its own schedule.

    Its schedule is the doubled epochs, and before the first setting an epoch of the second.
    """
    s = study.settings
    arms = [full(), lora_arm(lora)]
    for name, groups in study.groups.items():
        top, every = scu_top_cu(groups, layers=s.freeze_layers), scu_all_cu(groups, layers=s.freeze_layers)
        for arm, words in ((top, "SCU+6%CU"), (every, "SCU+all CU")):
            named = replace(arm, name=f"{words} ({name})")
            arms += [named, replace(as_many_random(named), name=random_name(named.name))]
        slow = scu_top_cu(groups, layers=s.freeze_layers, longer=s.longer, phases=s.longer > 1)
        if s.longer > 1:
            arms.append(replace(slow, name=f"SCU+6%CU, paper's schedule ({name})"))
            arms.append(replace(every, name=f"SCU+all CU, paper's schedule ({name})", longer=s.longer))
    return tuple(arms)


def random_name(arm: str) -> str:
    """The name of an arm's control."""
    return f"random, as many as {arm}"


def freezing(study: SsahStudy, run: RunDirectory, lora: LoraSettings | None = None) -> None:
    """Table 2: every scenario, arm and seed."""
    study.finetuning = run.kept("finetuning", FinetuningStudy, lambda: _tune(study, run, arms_of(study, lora)))


def equal_budgets(study: SsahStudy, run: RunDirectory) -> None:
    """Units, safety layers, half of each, and the highest units inside the layers, of equally many parameters.

    Of a quarter of the layers, and of all of them, where what both share would be the layers again. Masks that are
    drawn are drawn anew for each seed. Runs of full fine-tuning are those of Table 2.
    """
    study.equal = run.kept("equal", FinetuningStudy, lambda: _equal(study, run))


def _equal(study: SsahStudy, run: RunDirectory) -> FinetuningStudy:
    assert study.block is not None
    s, groups, block = study.settings, safest_first(study.groups[study.best]), study.block.layers
    largest = len(block) / study.shape.n_layers
    found = []
    for seed in s.seeds:
        arms = [full()]
        for words, share in BUDGETS.items():
            masks = equal_budget_masks(groups, block, study.unit_parameters, budget=share * largest, seed=seed)
            if share == 1.0:
                del masks["intersection"]
            size = f"{words} of the layers' parameters"
            arms += [Arm(budget_name(kind, words), f"{kind}, {size}", mask) for kind, mask in masks.items()]
        found.append(_tune(study, run, arms, seeds=(seed,), scenarios=s.scenarios[:1]))
    runs = tuple(one for part in found for one in part.runs)
    return replace(
        found[0], runs=runs, provenance={**found[0].provenance, "seeds": list(s.seeds), "layers": str(block)}
    )


def safest_first(groups: UnitGroups) -> UnitGroups:
    """The same groups in an order that has the SCU first, however these were cut, and then the highest S − U."""
    lift = max(float(row.max()) for row in groups.difference.values())
    lift -= min(float(row.min()) for row in groups.difference.values())
    scu = GROUPS.index("SCU")
    order = {site: row + (groups.labels[site] == scu) * (1 + lift) for site, row in groups.difference.items()}
    return replace(groups, difference=order)


def budget_name(kind: str, budget: str) -> str:
    """An arm's name by what it freezes and how much."""
    return f"{kind}, {budget}"


def _tune(
    study: SsahStudy,
    run: RunDirectory,
    arms: Sequence[Arm],
    *,
    seeds: Sequence[int] | None = None,
    scenarios: Sequence[Scenario] | None = None,
) -> FinetuningStudy:
    p, s = study.prompts, study.settings
    return finetuning_study(
        study.source,
        s.scenarios if scenarios is None else scenarios,
        arms,
        malicious=p.malicious.at_most(s.measured),
        over_rejection=None if p.over_rejection is None else p.over_rejection.at_most(s.measured),
        utility=p.measured_utility.at_most(s.measured),
        seeds=s.seeds if seeds is None else seeds,
        settings=s.training,
        points=s.points,
        curve_prompts=s.curve_prompts,
        evaluation=s.judging,
        extra=_under_pressure(study),
        out=run.work("finetuning"),
        **s.placing,
    )


def _under_pressure(study: SsahStudy) -> dict[str, ExtraMetric]:
    """Refusal with the system prompt, and after the first of the prefilled tokens, where these are given.

    What the model does not refuse before training either cannot be lost in it, and is not measured again.
    """
    s = study.settings
    asked = study.prompts.malicious.at_most(s.measured)
    extra: dict[str, ExtraMetric] = {}
    if s.system is not None:

        def with_system(model: Any, held_out: PromptSet) -> float:  # noqa: ARG001
            sets: EvaluationOptions = {"malicious": asked, "system": s.system, **s.judging}
            return evaluate(model, **sets).rates["malicious_refused"]

        extra["refused_with_system"] = with_system
    if s.prefill is not None and _holds_prefilled(study):

        def prefilled(model: Any, held_out: PromptSet) -> float:  # noqa: ARG001
            found = pressure(
                model,
                asked,
                prefill=s.prefill,
                prefill_tokens=(s.prefill_tokens or (1,))[:1],
                **s.asking,
            )
            return 1 - found.attempts[-1].success.rate

        extra["refused_prefilled"] = prefilled
    return extra


def _holds_prefilled(study: SsahStudy) -> bool:
    intact = study.pressures["nothing"]
    return any(bool(a.refused.any()) for a in intact.attempts if a.condition.prefilled and not a.condition.system)


def redundant_budget(study: SsahStudy, run: RunDirectory, base: str) -> None:
    """Table 4: the base model aligned by its redundant units alone, beside all of it and random units."""
    p, s = study.prompts, study.settings
    answered = p.answered or p.utility
    if p.answered_held_out is None:
        answered, held_out = split_off(answered, max(1, round(HELD_OUT * len(answered))), seed=s.seeds[0])
    else:
        held_out = p.answered_held_out

    def align() -> AlignmentBudget:
        return alignment_budget(
            base,
            p.safety.at_most(s.budget_rows),
            answered.at_most(s.budget_rows),
            held_out,
            malicious=p.malicious.at_most(s.measured),
            over_rejection=None if p.over_rejection is None else p.over_rejection.at_most(s.measured),
            utility=p.measured_utility.at_most(s.measured),
            share=s.budget_share,
            longer=s.longer,
            seeds=s.seeds,
            settings=s.training,
            points=1,
            curve_prompts=s.curve_prompts,
            evaluation=s.judging,
            out=run.work("budget"),
            **s.placing,
        )

    study.budget = run.kept("budget", AlignmentBudget, align)


def tuned_model(study: SsahStudy) -> HookedModel:
    """The model after full fine-tuning on the first scenario by the first seed."""
    s = study.settings
    model = s.load(study.source)
    finetune(model, s.scenarios[0].train, seed=s.seeds[0], progress=False, **s.training)
    return model
