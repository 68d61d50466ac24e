"""Which claims of *SSAH* show on a model, said in words from the study's numbers alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.paired import paired_difference
from safecircuits.base.stats import mean_interval
from safecircuits.base.text import percent, points
from safecircuits.behavior.stakes import nothing_to_lose
from safecircuits.papers.conclusion import Conclusion, entries
from safecircuits.papers.ssah.parts import NOT_LOCATED, PAPER, SsahResults
from safecircuits.papers.ssah.training_conclusions import (
    about_budget,
    about_equal_budgets,
    about_freezing,
    about_transfer,
)
from safecircuits.studies.comparison import MARGIN
from safecircuits.units.ablation import ONE_DRAW, Ablation, AblationTable

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


def conclusions(study: SsahResults) -> list[dict[str, str]]:
    """What the paper claims, whether it shows on this model, and the numbers, in the order of the report."""
    return entries(
        _direction(study),
        _sizes(study),
        _removals(study),
        _pressure(study),
        _stability(study),
        about_freezing(study),
        about_transfer(study),
        about_budget(study),
        _enrichment(study),
        about_equal_budgets(study),
    )


def _direction(study: SsahResults) -> Iterator[Conclusion]:
    for number, (reading, found) in enumerate(study.probes.items()):
        parts, right = [], []
        for name, probe in found.probes.items():
            gap = probe.gap()
            wanted = 1 if study.behavior[name].rates["malicious_refused"] > 0.5 else -1
            leaning = gap.leaning.count(wanted)
            right.append(leaning == probe.n_layers)
            way = "refusing" if wanted > 0 else "answering"
            parts.append(
                f"{name} refuses {percent(study.behavior[name].rates['malicious_refused'])}; {leaning} of "
                f"{probe.n_layers} blocks lean to {way}, last block {float(gap.mean[-1]):+.3f} "
                f"[{float(gap.low[-1]):+.3f}, {float(gap.high[-1]):+.3f}]".replace("-", "−")
            )
        verdicts = found.verdicts() if all(probe.measured().any() for probe in found.probes.values()) else None
        if verdicts is not None:
            parts.append(f"verdict and answer agree in {percent(float(verdicts.agreement[0, 1]))} of all prompts")
        effect = "Every block leans as the model answers, towards refusing if aligned and towards answering if not"
        shows = "yes" if all(right) else "unclear" if any(right) else "no"
        where = f"{PAPER} §3" if number == 0 else f"{PAPER} §3, control"
        text = f"d_malicious − d_benign: {'; '.join(parts)}."
        if not any(study.behavior[name].rates["malicious_refused"] > 0.5 for name in found.probes):
            shows, text = "inconclusive", f"No model here refuses, so that none can lean towards it. {text}"
        yield f"{effect} ({reading})", where, shows, text


def _sizes(study: SsahResults) -> Iterator[Conclusion]:
    if study.scores is None:
        return
    named = {cut.safest: name for name, cut in study.settings.cuts.items()}
    within = round(study.settings.scu * study.scores.n_units)
    parts = []
    for curve in study.scores.curves:
        most = max(point.removed for point in curve.points)
        found = f"more than {most}" if curve.smallest is None else str(curve.smallest)
        parts.append(f"{named[curve.candidate]}: {found} units")
    paper = next(iter(study.settings.cuts.values()))
    first = next(curve for curve in study.scores.curves if curve.candidate == paper.safest)
    shows = "yes" if first.smallest is not None and first.smallest <= within else "no"
    text = (
        f"Fewest units whose removal halves refusal at 2 points of utility or less: {'; '.join(parts)}. "
        f"{percent(study.settings.scu)} of the {study.scores.n_units} units are {within}."
    )
    if why := nothing_to_lose(study.scores.intact.rates, "malicious_refused", "utility"):
        shows, text = "inconclusive", f"{why} {text}"
    yield "As few units as the paper says carry refusal, found by its score", f"{PAPER} §4.1", shows, text


def _removals(study: SsahResults) -> Iterator[Conclusion]:
    for name, tables in study.removals.items():
        rows = {row.name: row for row in tables["zero"].rows}
        for group, claims in CLAIMS.items():
            for rate, expected, words in claims if group in rows else ():
                shows, text = removal_verdict(tables["zero"], rows[group], rate, expected)
                yield f"{words} (by {name})", f"{PAPER} Table 1", shows, text


def removal_verdict(table: AblationTable, row: Ablation, rate: str, expected: str) -> tuple[str, str]:
    """Whether a rate falls or stays as claimed, against the intact model and against as many random units.

    It falls if the paired interval over prompts lies five points below zero and, with controls, that over draws below
    zero; it does not if random units do the same. It stays if the paired interval lies above minus five points. Either
    is inconclusive where the intact model has nothing of it.
    """
    change, low, high = paired_difference(_verdicts(row.behavior, rate), _verdicts(table.intact, rate))
    label = rate.replace("_", " ")
    text = (
        f"{label} {percent(table.intact.rates[rate])} → {percent(row.behavior.rates[rate])} without the "
        f"{row.n_units} units ({points(change, low, high)} points)"
    )
    mean = beyond = float("-inf")  # without controls nothing speaks against the group
    if row.random_controls:
        mine = row.behavior.rates[rate]
        draws = torch.tensor([mine - control.rates[rate] for control in row.random_controls], dtype=torch.float64)
        mean, least, beyond = mean_interval(draws)
        control = sum(one.rates[rate] for one in row.random_controls) / len(row.random_controls)
        text += (
            f"; {percent(control)} without as many random ones, {len(draws)} draws "
            f"(difference {points(mean, least, beyond)})"
        )
        text += f"; {ONE_DRAW} (--controls 5)" * (len(draws) == 1)
    text = f"{text[0].upper()}{text[1:]}."
    if why := nothing_to_lose(table.intact.rates, rate):
        return "inconclusive", f"{why} {text}"
    if expected == "falls":
        shows = "no" if low > -MARGIN or mean > -MARGIN else "yes" if high < -MARGIN and beyond < 0 else "unclear"
    else:
        shows = "yes" if low > -MARGIN else "no" if high < -MARGIN else "unclear"
    return shows, text


def _verdicts(behavior: object, rate: str) -> Bool[Tensor, " prompt"]:
    field = {"malicious_refused": "malicious", "over_rejected": "over_rejection"}.get(rate, rate)
    values: Tensor = getattr(behavior, field)
    return values


def _pressure(study: SsahResults) -> Iterator[Conclusion]:
    intact = study.pressures.get("nothing")
    prefilled = [a for a in intact.attempts if a.condition.prefilled and not a.condition.system] if intact else []
    if intact is None or not prefilled:
        return
    last = prefilled[-1]
    low, high = last.success.interval
    plain = intact.attempts[0]
    text = (
        f"Not refused: {plain.success} as asked, {last.success} once the answer starts with "
        f"{last.condition.prefilled} compliant tokens."
    )
    shows = "yes" if low > plain.success.rate + MARGIN else "no" if high < plain.success.rate + MARGIN else "unclear"
    if why := nothing_to_lose({"malicious_refused": 1 - plain.success.rate}):
        shows, text = "inconclusive", f"{why} {text}"
    effect = "The direction is held in the first generated tokens only: an answer that starts compliant goes on"
    yield effect, f"{PAPER} §3, §5", shows, text


def _stability(study: SsahResults) -> Iterator[Conclusion]:
    for name, found in study.stability.items():
        rows = found.to_frame().set_index("what")
        scu = rows.loc["Jaccard SCU"]
        rank = rows.loc["rank correlation of S − U"]
        text = (
            f"{len(found.names)} random halves of the prompts: Jaccard overlap of the SCU {scu['mean']:.2f} on average "
            f"(least {scu['least']:.2f}, chance {scu['chance']:.3f}), rank correlation {rank['mean']:.2f}."
        )
        shows = "yes" if scu["least"] >= 0.5 else "no" if scu["mean"] < 0.5 else "unclear"
        if not scu["chance"]:
            shows, text = "inconclusive", f"The share of SCU is less than a unit: there are none to find again. {text}"
        yield f"Other prompts find the same SCU (by {name})", "reviewers’ control", shows, text
    if study.agreement is not None:
        table = study.agreement.jaccard["SCU"]
        overlap = float(table[0, -1])
        # Cuts may share S − U and differ in what SCU are cut by, so its rank correlation says nothing of the SCU.
        text = f"Jaccard overlap of the SCU {overlap:.2f} (chance {study.agreement.chance['SCU']:.3f})."
        names = study.agreement.names
        shows = "yes" if overlap >= 0.5 else "no"
        yield f"The scores {names[0]} and {names[-1]} find the same SCU", "control", shows, text


def _enrichment(study: SsahResults) -> Iterator[Conclusion]:
    for name, found in study.enrichments.items():
        block = found.block
        assert block is not None
        shows = (
            "yes" if block.count > block.high and block.p < 0.05 else "no" if block.count <= block.high else "unclear"
        )
        effect = f"The SCU by {name} are concentrated in the safety layers {block.layers}"
        text = f"{str(block)[0].upper()}{str(block)[1:]}."
        if study.block is not None and NOT_LOCATED in study.block.found_by:
            shows, text = "inconclusive", f"There are no safety layers: {study.block.found_by}. {text}"
        yield effect, "where the papers meet", shows, text
