"""What fine-tuning leaves of refusal, by what is frozen (Tables 2 and 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from safecircuits.behavior.conditions import pressure
from safecircuits.behavior.evaluate import EvaluationOptions, evaluate
from safecircuits.papers.conclusion import Conclusion, kept_by
from safecircuits.papers.page import StudyPage, compared_table, finetuning_exhibit, finetuning_tables
from safecircuits.papers.part import Maybe
from safecircuits.papers.ssah.groups import UNITS
from safecircuits.papers.ssah.settings import PAPER, Ssah
from safecircuits.papers.ssah.under_pressure import PRESSURES
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.studies.arms import Arm, full
from safecircuits.studies.comparison import Comparison
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.measure import ExtraMetric
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.scenarios import Scenario
from safecircuits.studies.ssah import as_many_random, lora_arm, scu_all_cu, scu_top_cu


def arms_of(study: Ssah) -> tuple[Arm, ...]:
    """The paper's two settings by every cut: step for step with random units beside them, and its own schedule.

    Its schedule is the doubled epochs, and before the first setting an epoch of the second.
    """
    s = study.settings
    arms = [full(), lora_arm(study.lora)]
    for name, groups in study[UNITS].items():
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


def tune(
    study: Ssah,
    arms: Sequence[Arm],
    *,
    seeds: Sequence[int] | None = None,
    scenarios: Sequence[Scenario] | None = None,
) -> FinetuningStudy:
    """A fine-tuning study of the model; runs that another part has made are not made again."""
    p, s = study.asked, study.settings
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
        out=study.work("finetuning"),
        **s.placing,
    )


def _under_pressure(study: Ssah) -> dict[str, ExtraMetric]:
    """Refusal with the system prompt, and after the first of the prefilled tokens, where these are given.

    What the model does not refuse before training either cannot be lost in it, and is not measured again.
    """
    s = study.settings
    asked = study.asked.malicious.at_most(s.measured)
    extra: dict[str, ExtraMetric] = {}
    if s.system is not None:

        def with_system(model: Any, _held_out: PromptSet) -> dict[str, float]:
            sets: EvaluationOptions = {"malicious": asked, "system": s.system, **s.judging}
            found = evaluate(model, **sets)
            rate = found.rates["malicious_refused"]
            return {"refused_with_system": rate, **found.tallies["malicious"].record("with_system")}

        extra["refused_with_system"] = with_system
    if s.prefill is not None and _holds_prefilled(study):

        def prefilled(model: Any, _held_out: PromptSet) -> dict[str, float]:
            found = pressure(
                model,
                asked,
                prefill=s.prefill,
                prefill_tokens=(s.prefill_tokens or (1,))[:1],
                **s.asking,
            )
            last = found.attempts[-1]
            beside = {} if last.tally is None else last.tally.record("prefilled")
            return {"refused_prefilled": last.refusal.rate, **beside}

        extra["refused_prefilled"] = prefilled
    return extra


def _holds_prefilled(study: Ssah) -> bool:
    intact = study[PRESSURES]["nothing"]
    return any(bool(a.refused.any()) for a in intact.attempts if a.condition.prefilled and not a.condition.system)


def _section(study: Ssah, made: StudyPage) -> None:
    tuned = study[FINETUNING]
    if tuned is None:
        return
    drawn = ["full", "lora", *(f"{kind} ({name})" for kind in ("SCU+6%CU", "SCU+all CU") for name in study[UNITS])]
    exhibits = []
    for number, scenario in enumerate(tuned.scenarios):
        compared = _compared(tuned, scenario)
        exhibits.append(finetuning_exhibit(made, f"finetuning_{number}", tuned, scenario, drawn, compared, 3.4))
    frozen = Table("Frozen in each arm", ["arm", "frozen"], [[arm, what] for arm, what in tuned.frozen.items()])
    exhibits.append(Exhibit(None, "Arms", "What each arm freezes.", [frozen]))
    made.add(
        "freezing",
        "What fine-tuning leaves of refusal (Table 2)",
        f"The same fine-tuning with different units frozen, {len(study.settings.seeds)} seeds. Compared with full "
        "fine-tuning at equal steps and, since an arm that learns less also forgets less, at equal loss on the task. "
        "The paper’s schedule doubles the epochs, and freezes all CU in a first epoch before the 6 %.",
        exhibits,
    )


def _compared(tuned: FinetuningStudy, scenario: str) -> list[Table]:
    """Every arm of a scenario against full fine-tuning and against its control."""
    others = [arm for arm in tuned.arms if arm != "full"]
    # The name says how long an arm trained: the end of twice the steps is not "equal steps".
    longer = [arm for arm in others if tuned.times_longer(scenario, arm) > 1]
    controlled = [(arm, random_name(arm)) for arm in others if random_name(arm) in tuned.arms]

    def against(pairs: Iterable[tuple[str, str]]) -> list[Comparison]:
        return [one for arm, reference in pairs for one in tuned.against(scenario, arm, reference)]

    shown = [compared_table(against((arm, "full") for arm in others if arm not in longer))]
    if longer:
        title = "Longer arms against full fine-tuning; “equal steps” are the ends of both"
        shown.append(compared_table(against((arm, "full") for arm in longer), title))
    if controlled:
        shown.append(compared_table(against(controlled), "Against as many random units, paired by seed"))
    return shown


def _claims(study: Ssah) -> Iterator[Conclusion]:
    tuned = study[FINETUNING]
    if tuned is None:
        return
    for scenario in tuned.scenarios:
        for name in study[UNITS]:
            for kind in ("SCU+6%CU", "SCU+all CU"):
                arm = f"{kind} ({name})"
                for label, words in ((arm, ""), (f"{kind}, paper's schedule ({name})", ", paper’s schedule")):
                    if label not in tuned.arms:
                        continue
                    effect = f"Freezing {kind} by {name}{words} keeps refusal in {scenario}"
                    yield effect, f"{PAPER} Table 2", *kept_by(tuned, scenario, label)
                control = random_name(arm)
                effect = f"Freezing {kind} by {name} keeps more than as many random units in {scenario}"
                yield effect, "control", *kept_by(tuned, scenario, arm, control, "as many random units")

        paper = f"SCU+all CU ({next(iter(study[UNITS]))})"
        effect = f"Freezing SCU+all CU by {next(iter(study[UNITS]))} keeps more than LoRA in {scenario}"
        yield effect, f"{PAPER} Table 3", *kept_by(tuned, scenario, paper, "lora", "LoRA")


FINETUNING: Maybe[Ssah, FinetuningStudy] = Maybe(
    "finetuning",
    FinetuningStudy,
    lambda study: tune(study, arms_of(study)),
    when=lambda study: study.settings.scenarios,
    says="fine-tuning with frozen units",
    section=_section,
    claims=_claims,
    tables=lambda study: finetuning_tables("finetuning", study[FINETUNING]),
)
