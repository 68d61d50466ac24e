"""Sections of the SSAH report about training: freezing, transfer, alignment budget, and units against safety layers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from safecircuits.base.text import percent, plain, points
from safecircuits.papers.page import StudyPage, arms_table, compared_table, finetuning_exhibit, with_interval
from safecircuits.papers.ssah.parts import SsahResults
from safecircuits.papers.ssah.training import BUDGETS, budget_name, random_name
from safecircuits.plots.finetuning import plot_study
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.studies.comparison import Comparison
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.units.groups import GROUPS
from safecircuits.units.transfer import AttributeTransfer


def add_freezing(study: SsahResults, made: StudyPage) -> None:
    """What is left of refusal, by what was frozen (Table 2)."""
    tuned = study.finetuning
    if tuned is None:
        return
    drawn = ["full", "lora", *(f"{kind} ({name})" for kind in ("SCU+6%CU", "SCU+all CU") for name in study.groups)]
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


def add_transfers(study: SsahResults, made: StudyPage) -> None:
    """Which units changed group in alignment and in fine-tuning (Figures 5 and 6)."""
    exhibits = []
    for number, (name, found) in enumerate(study.transfers.items()):
        for place, (label, transfer) in enumerate(found.items()):
            key = f"transfer_{number}_{place}"
            transfer.plot(made.axes(key, 3.6, 5.2))
            caption = f"By {name}: {label}. {'. '.join(str(transfer).splitlines())}."
            exhibits.append(Exhibit(key, f"By {name}: {label}", caption, [_transfer_table(transfer)]))
    made.add(
        "transfer",
        "Which units changed group (Figures 5 and 6)",
        "Units classified before and after training with the same data and shares. A base model knows no safety, so "
        "what is not redundant in it counts as utility-critical, as in the paper.",
        exhibits,
    )


def _transfer_table(transfer: AttributeTransfer) -> Table:
    rows = []
    for i, group in enumerate(GROUPS):
        if int(transfer.counts[i].sum()):
            cells = [
                f"{int(transfer.counts[i, j])} ({percent(float(transfer.matrix[i, j]))})" for j in range(len(GROUPS))
            ]
            rows.append([group, *cells])
    return Table("Units by group before (row) and after", ["", *GROUPS], rows)


def add_budget(study: SsahResults, made: StudyPage) -> None:
    """The base model aligned by its redundant units alone (Table 4)."""
    if study.budget is None:
        return
    study.budget.plot(made.axes("budget", 3.0))
    frame = study.budget.to_frame()
    shown = [name for name in ("malicious_refused", "over_rejected", "utility", "task_score") if name in frame]
    rows = [
        [
            str(row["arm"]),
            *(with_interval(row, name) for name in shown),
            points(row["tax"], math.nan, math.nan),
            f"{row['n_trainable']:,}".replace(",", " "),
            f"{row['training_bytes'] / 2**20:.1f} MiB",
            str(row["steps"]),
        ]
        for row in frame.to_dict("records")
    ]
    heads = [name.replace("_", " ") for name in shown]
    columns = ["trained", *heads, "tax, points", "parameters", "memory", "steps"]
    table = Table("The base model after alignment: mean over seeds [95 %]", columns, rows)
    arms = "; ".join(f"{row['arm']} freezes {row['trained']}" for row in frame.to_dict("records"))
    made.add(
        "budget",
        "Redundant units as alignment budget (Table 4)",
        f"The {100 * study.budget.share:g} % of the base model’s units of lowest S + U are trained on refusals and "
        "answers, and nothing else is. The tax is utility before minus after. In a reduced size; the full grid is a "
        f"benchmark of its own. {arms}.",
        [Exhibit("budget", "Rates after alignment, by what was trained", "Before: the base model.", [table])],
    )


def add_enrichment(study: SsahResults, made: StudyPage) -> None:
    """How many of the safety-critical units lie in the safety layers."""
    if study.block is None:
        return
    exhibits = []
    for number, (name, found) in enumerate(study.enrichments.items()):
        found.plot(made.axes(f"enrichment_{number}", 3.0))
        overlap = study.overlaps[name]
        caption = f"By {name}, {str(found).splitlines()[-1]}. Masks: {overlap}."
        rows = [
            [
                plain(row["layer"]),
                plain(row["units"]),
                f"{row['expected']:.1f}",
                f"{row['chance_low']:g} to {row['chance_high']:g}",
                f"{row['p']:.2g}",
                f"{row['q']:.2g}",
            ]
            for row in found.to_frame().to_dict("records")
        ]
        columns = ["layer", "SCU", "by chance", "95 % of permutations", "p", "q"]
        table = Table(f"SCU by {name}, by layer", columns, rows)
        exhibits.append(Exhibit(f"enrichment_{number}", f"SCU by {name} by layer", caption, [table]))
    made.add(
        "enrichment",
        "Where the two papers meet: do the units lie in the safety layers?",
        f"Safety layers {study.block.layers} ({study.block.found_by}). If the SCU were spread over the layers at "
        "random, a layer would hold a hypergeometric number of them.",
        exhibits,
    )


def add_equal_budgets(study: SsahResults, made: StudyPage) -> None:
    """Units or safety layers frozen, of equally many parameters."""
    tuned = study.equal
    if tuned is None or study.block is None:
        return
    scenario = tuned.scenarios[0]
    kinds = ("units", "layers", "both", "intersection", "random")
    exhibits = []
    for number, budget in enumerate(BUDGETS):
        names = [budget_name(kind, budget) for kind in kinds if budget_name(kind, budget) in tuned.arms]
        if not names:
            continue
        plot_study(tuned, scenario, arms=["full", *names], ax=made.axes(f"equal_{number}", 3.1))
        summary = tuned.summary()
        rows = summary[summary["arm"].isin(["full", *names])]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        found = [one for name in names for one in tuned.against(scenario, name)]
        title = "One arm against the other, paired by seed"
        other = [one for a, b in pairs for one in tuned.against(scenario, a, b)]
        exhibits.append(
            Exhibit(
                f"equal_{number}",
                f"Refusal against task loss, {budget} of the layers’ parameters frozen",
                f"{budget.capitalize()} of the layers’ parameters frozen; {scenario}. Thin lines are seeds, thick ones "
                "their mean.",
                [arms_table(rows), compared_table(found), compared_table(other, title)],
            )
        )
    made.add(
        "equal",
        "Where the two papers meet: units or layers, at equal budgets",
        f"Equally many parameters frozen: the SCU ({study.best}) and then the highest units by S − U, wherever they "
        f"lie; units of the safety layers {study.block.layers} by seed, or all of them; half of the budget for each; "
        "the first such units inside the layers; and random units. "
        f"{len(study.settings.seeds)} seeds.",
        exhibits,
    )
