"""What each group carries (Table 1): units set to zero or to their mean, asked with a system prompt, or cut out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from safecircuits.base.counted import said
from safecircuits.base.paired import paired_difference
from safecircuits.base.progress import without_bars
from safecircuits.base.stats import mean_interval
from safecircuits.base.text import percent, points
from safecircuits.behavior.evaluate import EvaluationOptions, evaluate
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.stakes import nothing_to_lose
from safecircuits.model.each_model import release
from safecircuits.model.load import load_model
from safecircuits.papers.conclusion import Conclusion, side_effects
from safecircuits.papers.page import StudyPage, removal_exhibit, removal_table
from safecircuits.papers.part import Part, Parts, by_first
from safecircuits.papers.ssah.groups import UNITS
from safecircuits.papers.ssah.scores import measured
from safecircuits.papers.ssah.settings import PAPER, Ssah
from safecircuits.report import tables
from safecircuits.report.tables import Table
from safecircuits.results.by_category import with_categories
from safecircuits.results.result import Result
from safecircuits.studies.comparison import MARGIN
from safecircuits.units.ablation import ONE_DRAW, Ablation, AblationTable, ablate_groups, mean_figures
from safecircuits.units.importance import score_units
from safecircuits.units.prune import prune_units
from safecircuits.units.scores import UnitScores

REMOVED = ("SCU", "UCU", "RU")
"""The groups whose removal Table 1 measures."""

CONDITIONS: Mapping[str, str] = {
    "zero": "activations set to zero",
    "mean": "activations set to their mean, except where all prompts begin alike",
    "system": "activations set to zero, asked with the system prompt",
}
"""How they are removed, in words."""

CLAIMS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "SCU": (
        ("malicious_refused", "falls", "Removing the SCU removes refusal"),
        ("utility", "stays", "Removing the SCU leaves utility"),
    ),
    "UCU": (
        ("utility", "falls", "Removing the UCU removes utility"),
        ("malicious_refused", "stays", "Removing the UCU leaves refusal"),
    ),
    "RU": (
        ("malicious_refused", "stays", "Removing the RU leaves refusal"),
        ("utility", "stays", "Removing the RU leaves utility"),
    ),
}
"""Table 1, group by group: a rate, what the paper has it do, and the claim in words."""


@dataclass(frozen=True)
class PrunedGroup(Result):
    """A checkpoint without the units of one group: how large it is, and what it does."""

    n_units: int
    parameters_before: int
    parameters_after: int
    behavior: Behavior


def _means(study: Ssah) -> UnitScores:
    # What a unit does on average is a fact about the model, so it is counted over the prompts that are not harmful.
    return score_units(study.model, study.asked.utility, method="wifv", tokens="all", template=study.settings.template)


def _remove(study: Ssah, key: tuple[str, str]) -> AblationTable:
    name, condition = key
    s = study.settings
    means = study[MEANS]
    more: dict[str, dict[str, Any]] = {
        "zero": {},
        "mean": {"to": means.mean, "spare": means.beginning},  # a mean was taken without what every prompt begins with
        "system": {"utility": None, "system": s.system},
    }
    return ablate_groups(
        study.model,
        study[UNITS][name],
        names=REMOVED,
        controls=s.controls if condition == "zero" else 0,
        seed=s.seeds[0],
        resume=study.work(f"{study.by_cut('removals')[name]}_{condition}.jsonl"),
        progress=True,
        **{**measured(study), **more[condition]},
    )


def _prune(study: Ssah, key: tuple[str, str]) -> PrunedGroup:
    name, group = key
    smaller = prune_units(study.model, study[UNITS][name][group])
    with without_bars():
        hooked = load_model(smaller.hf_model, tokenizer=smaller.tokenizer, backend="bridge")
    asked: EvaluationOptions = {**measured(study), "unchanged": study.model}
    behavior = evaluate(hooked, **asked)
    return PrunedGroup(smaller.n_units, smaller.parameters_before, smaller.parameters_after, behavior)


def removed(study: Ssah) -> dict[str, dict[str, AblationTable]]:
    """What is left without each group, by cut and condition."""
    return by_first(study[REMOVALS])


def _section(study: Ssah, made: StudyPage) -> None:
    pruned = by_first(study[PRUNED])
    exhibits = []
    for number, (name, found) in enumerate(removed(study).items()):
        numbers = [removal_table(table, CONDITIONS[condition]) for condition, table in found.items()]
        if name in pruned:
            numbers.append(_pruned_table(pruned[name]))
        key, label = f"removals_{number}", f"Groups by {name} removed"
        exhibits.append(removal_exhibit(made, key, label, f"Groups by {name}. ", found["zero"], numbers))
    made.add(
        "removals",
        "What each group carries (Table 1)",
        "Each group is removed and, beside it, as many random units of the same sites. If a group is what its name "
        "says, refusal goes with the SCU and utility with the UCU, and nothing much with the RU.",
        exhibits,
    )


def _pruned_table(pruned: Mapping[str, PrunedGroup]) -> Table:
    rows: list[list[str]] = []
    all_of, rates = [found.behavior.record() for found in pruned.values()], ("malicious_refused", "utility")
    for group, found in pruned.items():
        rows.append(
            [
                group,
                str(found.n_units),
                f"{found.parameters_after:,}".replace(",", " "),
                percent(found.parameters_after / found.parameters_before),
                *tables.rate_cells(found.behavior.record(), all_of, rates),
            ]
        )
    columns = ["cut out", "units", "parameters left", "of all", *tables.rate_headings(all_of, rates)]
    return Table("Cut out of the weights: smaller checkpoints", columns, rows)


def _claims(study: Ssah) -> Iterator[Conclusion]:
    for name, found in removed(study).items():
        table = found["zero"]
        rows = {row.name: row for row in table.rows}
        for group, claims in CLAIMS.items():
            for rate, expected, words in claims if group in rows else ():
                shows, text = removal_verdict(table, rows[group], rate, expected)
                yield f"{words} (by {name})", f"{PAPER} Table 1", shows, text


def removal_verdict(table: AblationTable, row: Ablation, rate: str, expected: str) -> tuple[str, str]:
    """Whether a rate falls or stays as claimed, against the intact model and against as many random units.

    It falls if the paired interval over prompts lies five points below zero and, with controls, that over draws below
    zero; it does not if random units do the same. It stays if the paired interval lies above minus five points. Either
    is inconclusive where the intact model has nothing of it.
    """
    change, low, high = paired_difference(row.behavior.counted[rate], table.intact.counted[rate])
    label = rate.replace("_", " ")
    text = (
        f"{label} {said(table.intact.figures, rate)} → {said(row.behavior.figures, rate)} without the "
        f"{row.n_units} units ({points(change, low, high)} points)"
    )
    mean = beyond = float("-inf")  # without controls nothing speaks against the group
    if row.random_controls:
        mine = row.behavior.rates[rate]
        draws = torch.tensor([mine - control.rates[rate] for control in row.random_controls], dtype=torch.float64)
        mean, least, beyond = mean_interval(draws, within=(-1, 1))
        control = mean_figures(row.random_controls)
        text += (
            f"; {said(control, rate)} without as many random ones, {len(draws)} draws "
            f"(difference {points(mean, least, beyond)})"
        )
        text += f"; {ONE_DRAW}" * (len(draws) == 1)
    about = {rate for rate, _, _ in CLAIMS.get(row.name, ())} | {rate}  # what the group's other claim says
    text = f"{text[0].upper()}{text[1:]}. {side_effects(table.intact.figures, row.behavior.figures, *about)}"
    if why := nothing_to_lose(table.intact.rates, rate):
        return "inconclusive", f"{why} {text}"
    if expected == "falls":
        shows = "no" if low > -MARGIN or mean > -MARGIN else "yes" if high < -MARGIN and beyond < 0 else "unclear"
    else:
        shows = "yes" if low > -MARGIN else "no" if high < -MARGIN else "unclear"
    return shows, text


def _conditions(study: Ssah) -> dict[tuple[str, str], str]:
    asked = [one for one in CONDITIONS if one != "system" or study.settings.system is not None]
    return {(cut, one): f"{name}_{one}" for cut, name in study.by_cut("removals").items() for one in asked}


def _there(study: Ssah) -> dict[tuple[str, str], str]:
    """Of the groups that have units at all: the others cannot be cut out."""
    names = study.by_cut("pruned").items()
    there = {cut: [one for one in REMOVED if study[UNITS][cut][one]] for cut, _ in names}
    return {(cut, group): f"{name}_{group}" for cut, name in names for group in there[cut]}


MEANS: Part[Ssah, UnitScores] = Part("means", UnitScores, _means)
REMOVALS: Parts[Ssah, tuple[str, str], AblationTable] = Parts(
    _conditions,
    AblationTable,
    _remove,
    says="groups by {0} removed: {1}",
    tables=lambda study: with_categories({name: study[REMOVALS][key] for key, name in _conditions(study).items()}),
)
PRUNED: Parts[Ssah, tuple[str, str], PrunedGroup] = Parts(
    _there,
    PrunedGroup,
    _prune,
    when=lambda study: study.settings.prune,
    says="{1} by {0} cut out of the weights",
    then=lambda _: release(),
    section=_section,
    claims=_claims,
)
