"""Which claims of *SSAH* show on a model, said in words from the study's numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.report.text import join, percent, points
from safecircuits.stats import mean_interval, paired_difference
from safecircuits.studies.compare import MARGIN, Comparison, compare, verdict
from safecircuits.studies.conclusion import Conclusion, entries, keeps_refusal
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.ssah_parts import SsahResults
from safecircuits.studies.ssah_training import BUDGETS, budget_name, random_name
from safecircuits.units.ablation import Ablation, AblationTable
from safecircuits.units.groups import GROUPS

PAPER = "SSAH"
PLACES: tuple[Literal["equal steps", "matched loss"], ...] = ("equal steps", "matched loss")
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
        _freezing(study),
        _transfer(study),
        _budget(study),
        _meeting(study),
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
        yield f"{effect} ({reading})", where, shows, f"d_malicious − d_benign: {'; '.join(parts)}."


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
    zero; it does not if random units do the same. It stays if the paired interval lies above minus five points.
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
    if expected == "falls":
        shows = "no" if low > -MARGIN or mean > -MARGIN else "yes" if high < -MARGIN and beyond < 0 else "unclear"
    else:
        shows = "yes" if low > -MARGIN else "no" if high < -MARGIN else "unclear"
    return shows, f"{text[0].upper()}{text[1:]}."


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
        yield f"Other prompts find the same SCU (by {name})", "reviewers’ control", shows, text
    if study.agreement is not None:
        table = study.agreement.jaccard["SCU"]
        overlap = float(table[0, -1])
        # Cuts may share S − U and differ in what SCU are cut by, so its rank correlation says nothing of the SCU.
        text = f"Jaccard overlap of the SCU {overlap:.2f} (chance {study.agreement.chance['SCU']:.3f})."
        names = study.agreement.names
        shows = "yes" if overlap >= 0.5 else "no"
        yield f"The scores {names[0]} and {names[-1]} find the same SCU", "control", shows, text


def _freezing(study: SsahResults) -> Iterator[Conclusion]:
    tuned = study.finetuning
    if tuned is None:
        return
    for scenario in tuned.scenarios:
        for name in study.groups:
            for kind in ("SCU+6%CU", "SCU+all CU"):
                arm = f"{kind} ({name})"
                for label, words in ((arm, ""), (f"{kind}, paper's schedule ({name})", ", paper’s schedule")):
                    if label not in tuned.arms:
                        continue
                    effect = f"Freezing {kind} by {name}{words} keeps refusal in {scenario}"
                    found = against(tuned, scenario, label, "full")
                    shows, text = keeps_refusal(found, longer=times_longer(tuned, scenario, label))
                    yield effect, f"{PAPER} Table 2", shows, text
                control = random_name(arm)
                found = against(tuned, scenario, arm, control)
                effect = f"Freezing {kind} by {name} keeps more than as many random units in {scenario}"
                yield effect, "control", *keeps_refusal(found, "as many random units")

        paper = f"SCU+all CU ({next(iter(study.groups))})"
        effect = f"Freezing SCU+all CU by {next(iter(study.groups))} keeps more than LoRA in {scenario}"
        found = against(tuned, scenario, paper, "lora")
        yield effect, f"{PAPER} Table 3", *keeps_refusal(found, "LoRA")


def against(tuned: FinetuningStudy, scenario: str, arm: str, reference: str) -> list[Comparison]:
    """One arm against another, at equal steps and where it can be at matched loss."""
    runs = tuned.of(scenario, arm), tuned.of(scenario, reference)
    found = [compare(*runs, place) for place in PLACES]
    return [one for one in found if one is not None]


def times_longer(tuned: FinetuningStudy, scenario: str, arm: str) -> int:
    """How many times the steps of full fine-tuning an arm took."""
    return round(tuned.of(scenario, arm)[0].steps / tuned.of(scenario, "full")[0].steps)


def _transfer(study: SsahResults) -> Iterator[Conclusion]:
    for name, found in study.transfers.items():
        for label, transfer in found.items():
            shares = transfer.shares
            scu, cu = GROUPS.index("SCU"), GROUPS.index("CU")
            if label.startswith(f"{study.name} →"):
                stayed, to_cu = float(transfer.matrix[scu, scu]), float(transfer.matrix[scu, cu])
                text = (
                    f"Of the SCU {percent(stayed)} stay SCU and {percent(to_cu)} become CU (by chance "
                    f"{percent(float(transfer.chance[scu, scu] / shares[scu].sum()))} would stay)."
                )
                shows = "yes" if to_cu > 0.5 else "no" if stayed > 0.5 else "unclear"
                effect = f"Fine-tuning turns most safety-critical units into complex ones (by {name}; {label})"
                yield effect, f"{PAPER} Figure 5", shows, text
            elif label.startswith("unaligned"):
                kept = float(transfer.matrix[scu, scu])
                text = f"Of the SCU of {study.name} {percent(_from(transfer.counts, scu))} were SCU before. " + (
                    f"Of those before, {percent(kept)} still are."
                )
                shows = "yes" if _from(transfer.counts, scu) < 0.5 else "no"
                yield f"Alignment makes the safety-critical units (by {name}; {label})", f"{PAPER} §4.2", shows, text


def _from(counts: Tensor, group: int) -> float:
    """Of the units that are in a group afterwards, the share that was in it before."""
    return float(counts[group, group] / counts[:, group].sum())


def _budget(study: SsahResults) -> Iterator[Conclusion]:
    if study.budget is None:
        return
    tuned = study.budget.study
    scenario = tuned.scenarios[0]
    means = {arm: tuned.of(scenario, arm) for arm in tuned.arms}

    def rate(arm: str, name: str) -> float:
        return sum(run.figures[name] for run in means[arm]) / len(means[arm])

    def difference(arm: str, reference: str, name: str) -> tuple[float, float, float]:
        pairs = zip(means[arm], means[reference], strict=True)
        return mean_interval(torch.tensor([a.figures[name] - b.figures[name] for a, b in pairs], dtype=torch.float64))

    for name, words in (("malicious_refused", "refuses"), ("utility", "knows")):
        gap = difference("ru", "full", name)
        label = name.replace("_", " ")
        text = (
            f"{label[0].upper()}{label[1:]}: {percent(rate('ru', name))} with {100 * study.budget.share:g} % of the "
            f"units trained, {percent(rate('full', name))} with everything trained ({points(*gap)} points), "
            f"{percent(rate('random', name))} with as many random units; before "
            f"{percent(means['full'][0].before[name])}."
        )
        shows = {"no difference": "yes", "helps": "yes", "harms": "no", "unclear": "unclear"}[verdict(gap[1], gap[2])]
        effect = f"Aligned by its redundant units alone, a base model {words} as much as when all of it is trained"
        yield effect, f"{PAPER} Table 4", shows, text
    gap = difference("ru", "random", "malicious_refused")
    shows = {"helps": "yes", "unclear": "unclear"}.get(verdict(gap[1], gap[2]), "no")
    text = f"Malicious refused, redundant against as many random units: {points(*gap)} points."
    yield "Redundant units are better for this than random ones", "control", shows, text


def _meeting(study: SsahResults) -> Iterator[Conclusion]:
    for name, found in study.enrichments.items():
        block = found.block
        assert block is not None
        shows = (
            "yes" if block.count > block.high and block.p < 0.05 else "no" if block.count <= block.high else "unclear"
        )
        effect = f"The SCU by {name} are concentrated in the safety layers {block.layers}"
        yield effect, "where the papers meet", shows, f"{str(block)[0].upper()}{str(block)[1:]}."
    tuned = study.equal
    if tuned is None:
        return
    scenario = tuned.scenarios[0]
    for budget in BUDGETS:
        names = {kind: budget_name(kind, budget) for kind in ("units", "layers", "both", "intersection", "random")}
        there = {kind: arm for kind, arm in names.items() if arm in tuned.arms}
        if not there:
            continue
        kept = [f"{kind} {percent(_mean(tuned, scenario, arm))}" for kind, arm in there.items()]
        listed = (
            f"Refused after fine-tuning on {scenario}, {percent(_mean(tuned, scenario, 'full'))} with nothing frozen: "
        )
        for kind, reference in (("units", "layers"), ("both", "units"), ("units", "random"), ("layers", "random")):
            shows, text = keeps_refusal(against(tuned, scenario, there[kind], there[reference]), reference)
            effect = f"At the parameters of {budget} of the safety layers, freezing {kind} keeps more than {reference}"
            extra = f" {listed}{join(kept)}." if kind == "units" and reference == "layers" else ""
            yield effect, "where the papers meet", shows, text + extra


def _mean(tuned: FinetuningStudy, scenario: str, arm: str) -> float:
    runs = tuned.of(scenario, arm)
    return sum(run.figures["malicious_refused"] for run in runs) / len(runs)
