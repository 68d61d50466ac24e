"""Where the two papers meet: units or safety layers frozen, of equally many parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from safecircuits.base.counted import said
from safecircuits.base.text import join
from safecircuits.papers.conclusion import Conclusion, kept_by
from safecircuits.papers.page import StudyPage, arms_table, compared_table, finetuning_tables
from safecircuits.papers.part import Maybe
from safecircuits.papers.ssah.freezing import tune
from safecircuits.papers.ssah.groups import UNITS
from safecircuits.papers.ssah.removals import MEANS
from safecircuits.papers.ssah.safety_block import known_block, safety_block
from safecircuits.papers.ssah.settings import Ssah
from safecircuits.plots.finetuning import plot_study
from safecircuits.report.sections import Exhibit
from safecircuits.studies.arms import Arm, full
from safecircuits.studies.comparison import REFUSED
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.units.equal_budget import equal_budget_masks
from safecircuits.units.groups import UnitGroups

BUDGETS = {"a quarter": 0.25, "all": 1.0}
"""Budgets of the comparison with the safety layers, as shares of their parameters."""


def _equal(study: Ssah) -> FinetuningStudy:
    """Units, safety layers, half of each, and the highest units inside the layers.

    Of a quarter of the layers, and of all of them, where what both share would be the layers again. Masks that are
    drawn are drawn anew for each seed. Runs of full fine-tuning are those of Table 2.
    """
    s, groups, block = study.settings, safest_first(study[UNITS][study.best]), known_block(study)
    largest = len(block) / study.shape.n_layers
    found = []
    for seed in s.seeds:
        arms = [full()]
        for words, share in BUDGETS.items():
            masks = equal_budget_masks(groups, block, study[MEANS].unit_parameters, budget=share * largest, seed=seed)
            if share == 1.0:
                del masks["intersection"]
            size = f"{words} of the layers' parameters"
            arms += [Arm(budget_name(kind, words), f"{kind}, {size}", mask) for kind, mask in masks.items()]
        found.append(tune(study, arms, seeds=(seed,), scenarios=s.scenarios[:1]))
    runs = tuple(one for part in found for one in part.runs)
    return replace(
        found[0], runs=runs, provenance={**found[0].provenance, "seeds": list(s.seeds), "layers": str(block)}
    )


def safest_first(groups: UnitGroups) -> UnitGroups:
    """The same groups in an order that has the SCU first, however these were cut, and then the highest S − U."""
    lift = max(float(row.max()) for row in groups.difference.values())
    lift -= min(float(row.min()) for row in groups.difference.values())
    scu = groups["SCU"]
    order = {site: row + scu.at(site) * (1 + lift) for site, row in groups.difference.items()}
    return replace(groups, difference=order)


def budget_name(kind: str, budget: str) -> str:
    """An arm's name by what it freezes and how much."""
    return f"{kind}, {budget}"


def _section(study: Ssah, made: StudyPage) -> None:
    tuned, block = study[EQUAL], safety_block(study)
    if tuned is None or block is None:
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
        f"lie; units of the safety layers {block.layers} by seed, or all of them; half of the budget for each; "
        "the first such units inside the layers; and random units. "
        f"{len(study.settings.seeds)} seeds.",
        exhibits,
    )


def _claims(study: Ssah) -> Iterator[Conclusion]:
    tuned = study[EQUAL]
    if tuned is None:
        return
    scenario = tuned.scenarios[0]
    for budget in BUDGETS:
        names = {kind: budget_name(kind, budget) for kind in ("units", "layers", "both", "intersection", "random")}
        there = {kind: arm for kind, arm in names.items() if arm in tuned.arms}
        if not there:
            continue
        kept = [f"{kind} {said(tuned.means(scenario, arm), REFUSED)}" for kind, arm in there.items()]
        whole = said(tuned.means(scenario, "full"), REFUSED)
        listed = f"Refused after fine-tuning on {scenario}, {whole} with nothing frozen: "
        for kind, reference in (("units", "layers"), ("both", "units"), ("units", "random"), ("layers", "random")):
            shows, text = kept_by(tuned, scenario, there[kind], there[reference], reference)
            effect = f"At the parameters of {budget} of the safety layers, freezing {kind} keeps more than {reference}"
            extra = f" {listed}{join(kept)}." if kind == "units" and reference == "layers" else ""
            yield effect, "where the papers meet", shows, text + extra


EQUAL: Maybe[Ssah, FinetuningStudy] = Maybe(
    "equal",
    FinetuningStudy,
    _equal,
    when=lambda study: study.settings.scenarios and safety_block(study) is not None,
    says="units and layers, frozen at equal budgets",
    section=_section,
    claims=_claims,
    tables=lambda study: finetuning_tables("equal_budgets", study[EQUAL]),
)
