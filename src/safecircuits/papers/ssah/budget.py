"""Redundant units as an alignment budget: the base model aligned by them alone (Table 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from safecircuits.base.counted import cells, headings, said
from safecircuits.base.record import rows_of
from safecircuits.base.stats import mean_interval
from safecircuits.base.text import points
from safecircuits.behavior.stakes import LEAST
from safecircuits.papers.conclusion import Conclusion, unless
from safecircuits.papers.page import StudyPage, with_interval
from safecircuits.papers.part import Maybe
from safecircuits.papers.ssah.settings import PAPER, Ssah
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.studies.budget import AlignmentBudget, alignment_budget
from safecircuits.studies.comparison import verdict
from safecircuits.studies.scenarios import split_off

HELD_OUT = 0.1
"""Share of the alignment data's answers that are held out where no others are given."""


def _align(study: Ssah) -> AlignmentBudget:
    """Beside all of it and random units."""
    p, s = study.asked, study.settings
    answered, held_out = p.answered or p.utility, p.answered_held_out
    if held_out is None:
        answered, held_out = split_off(answered, max(1, round(HELD_OUT * len(answered))), seed=s.seeds[0])
    return alignment_budget(
        study.others["base"],
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
        out=study.work("budget"),
        **s.placing,
    )


def _section(study: Ssah, made: StudyPage) -> None:
    budget = study[BUDGET]
    if budget is None:
        return
    budget.plot(made.axes("budget", 3.0))
    frame = budget.to_frame()
    shown = [name for name in ("malicious_refused", "over_rejected", "utility", "task_score") if name in frame]
    all_of = rows_of(frame)
    rows = [
        [
            str(row["arm"]),
            *cells(row, all_of, shown, [with_interval(row, name) for name in shown]),
            points(row["tax"], math.nan, math.nan),
            f"{row['n_trainable']:,}".replace(",", " "),
            f"{row['training_bytes'] / 2**20:.1f} MiB",
            str(row["steps"]),
        ]
        for row in all_of
    ]
    heads = headings(all_of, shown, [name.replace("_", " ") for name in shown])
    columns = ["trained", *heads, "tax, points", "parameters", "memory", "steps"]
    table = Table("The base model after alignment: mean over seeds [95 %]", columns, rows)
    arms = "; ".join(f"{row['arm']} freezes {row['trained']}" for row in all_of)
    made.add(
        "budget",
        "Redundant units as alignment budget (Table 4)",
        f"The {100 * budget.share:g} % of the base model’s units of lowest S + U are trained on refusals and "
        "answers, and nothing else is. The tax is utility before minus after. In a reduced size; the full grid is a "
        f"benchmark of its own. {arms}.",
        [Exhibit("budget", "Rates after alignment, by what was trained", "Before: the base model.", [table])],
    )


def _claims(study: Ssah) -> Iterator[Conclusion]:
    budget = study[BUDGET]
    if budget is None:
        return
    tuned = budget.study
    scenario = tuned.scenarios[0]
    means = {arm: tuned.of(scenario, arm) for arm in tuned.arms}

    def rate(arm: str, name: str) -> float:
        return sum(run.figures[name] for run in means[arm]) / len(means[arm])

    def difference(arm: str, reference: str, name: str) -> tuple[float, float, float]:
        pairs = zip(means[arm], means[reference], strict=True)
        differences = [a.figures[name] - b.figures[name] for a, b in pairs]
        return mean_interval(torch.tensor(differences, dtype=torch.float64), within=(-1, 1))

    for name, words in (("malicious_refused", "refuses"), ("utility", "knows")):
        gap = difference("ru", "full", name)
        label = name.replace("_", " ")
        ru, full, random = (said(tuned.means(scenario, arm), name) for arm in ("ru", "full", "random"))
        text = (
            f"{label[0].upper()}{label[1:]}: {ru} with {100 * budget.share:g} % of the "
            f"units trained, {full} with everything trained ({points(*gap)} points), "
            f"{random} with as many random units; before "
            f"{said(means['full'][0].before, name)}."
        )
        shows = {"no difference": "yes", "helps": "yes", "harms": "no", "unclear": "unclear"}[verdict(gap[1], gap[2])]
        effect = f"Aligned by its redundant units alone, a base model {words} as much as when all of it is trained"
        yield effect, f"{PAPER} Table 4", *unless(_untaught(rate("full", name), words), shows, text)
    gap = difference("ru", "random", "malicious_refused")
    shows = {"helps": "yes", "unclear": "unclear"}.get(verdict(gap[1], gap[2]), "no")
    text = f"Malicious refused, redundant against as many random units: {points(*gap)} points."
    why = _untaught(max(rate(arm, "malicious_refused") for arm in ("ru", "random", "full")), "refuses")
    yield "Redundant units are better for this than random ones", "control", *unless(why, shows, text)


def _untaught(rate: float, words: str) -> str:
    return f"There is nothing to match: trained whole, it {words} next to nothing." if rate < LEAST else ""


BUDGET: Maybe[Ssah, AlignmentBudget] = Maybe(
    "budget",
    AlignmentBudget,
    _align,
    when=lambda study: "base" in study.others,
    says="redundant units as alignment budget",
    section=_section,
    claims=_claims,
    tables=lambda study: {} if (found := study[BUDGET]) is None else {"budget": found.to_frame()},
)
