"""Which of SSAH's claims about training show on a model: freezing, transfer, the alignment budget, equal budgets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from safecircuits.base.stats import mean_interval
from safecircuits.base.text import join, percent, points
from safecircuits.behavior.stakes import LEAST, nothing_to_lose
from safecircuits.papers.conclusion import Conclusion, keeps_refusal
from safecircuits.papers.ssah.parts import PAPER, SsahResults
from safecircuits.papers.ssah.training import BUDGETS, budget_name, random_name
from safecircuits.studies.comparison import verdict
from safecircuits.units.groups import GROUPS


def about_freezing(study: SsahResults) -> Iterator[Conclusion]:
    """Whether frozen units keep refusal: against full fine-tuning, as many random units, and LoRA."""
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
                    found = tuned.against(scenario, label)
                    shows, text = keeps_refusal(found, longer=tuned.times_longer(scenario, label))
                    yield effect, f"{PAPER} Table 2", shows, text
                control = random_name(arm)
                found = tuned.against(scenario, arm, control)
                effect = f"Freezing {kind} by {name} keeps more than as many random units in {scenario}"
                yield effect, "control", *keeps_refusal(found, "as many random units")

        paper = f"SCU+all CU ({next(iter(study.groups))})"
        effect = f"Freezing SCU+all CU by {next(iter(study.groups))} keeps more than LoRA in {scenario}"
        found = tuned.against(scenario, paper, "lora")
        yield effect, f"{PAPER} Table 3", *keeps_refusal(found, "LoRA")


def about_transfer(study: SsahResults) -> Iterator[Conclusion]:
    """Which units alignment and fine-tuning move into and out of the SCU."""
    behavior = study.behavior.get(study.name)
    why = nothing_to_lose(behavior.rates, "malicious_refused") if behavior is not None else ""
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
                yield effect, f"{PAPER} Figure 5", *_unless(why, shows, text)
            elif label.startswith("unaligned"):
                kept = float(transfer.matrix[scu, scu])
                text = f"Of the SCU of {study.name} {percent(_from(transfer.counts, scu))} were SCU before. " + (
                    f"Of those before, {percent(kept)} still are."
                )
                shows = "yes" if _from(transfer.counts, scu) < 0.5 else "no"
                effect = f"Alignment makes the safety-critical units (by {name}; {label})"
                yield effect, f"{PAPER} §4.2", *_unless(why, shows, text)


def _unless(why: str, shows: str, text: str) -> tuple[str, str]:
    """A verdict and its numbers, unless there is a reason why it is inconclusive."""
    return ("inconclusive", f"{why} {text}") if why else (shows, text)


def _from(counts: Tensor, group: int) -> float:
    """Of the units that are in a group afterwards, the share that was in it before."""
    return float(counts[group, group] / counts[:, group].sum())


def about_budget(study: SsahResults) -> Iterator[Conclusion]:
    """Whether the redundant units of a base model are enough to align it."""
    if study.budget is None:
        return
    tuned = study.budget.study
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
        text = (
            f"{label[0].upper()}{label[1:]}: {percent(rate('ru', name))} with {100 * study.budget.share:g} % of the "
            f"units trained, {percent(rate('full', name))} with everything trained ({points(*gap)} points), "
            f"{percent(rate('random', name))} with as many random units; before "
            f"{percent(means['full'][0].before[name])}."
        )
        shows = {"no difference": "yes", "helps": "yes", "harms": "no", "unclear": "unclear"}[verdict(gap[1], gap[2])]
        effect = f"Aligned by its redundant units alone, a base model {words} as much as when all of it is trained"
        yield effect, f"{PAPER} Table 4", *_unless(_untaught(rate("full", name), words), shows, text)
    gap = difference("ru", "random", "malicious_refused")
    shows = {"helps": "yes", "unclear": "unclear"}.get(verdict(gap[1], gap[2]), "no")
    text = f"Malicious refused, redundant against as many random units: {points(*gap)} points."
    why = _untaught(max(rate(arm, "malicious_refused") for arm in ("ru", "random", "full")), "refuses")
    yield "Redundant units are better for this than random ones", "control", *_unless(why, shows, text)


def _untaught(rate: float, words: str) -> str:
    return f"There is nothing to match: trained whole, it {words} next to nothing." if rate < LEAST else ""


def about_equal_budgets(study: SsahResults) -> Iterator[Conclusion]:
    """Whether units keep more refusal than safety layers of as many parameters, and than random units."""
    tuned = study.equal
    if tuned is None:
        return
    scenario = tuned.scenarios[0]
    for budget in BUDGETS:
        names = {kind: budget_name(kind, budget) for kind in ("units", "layers", "both", "intersection", "random")}
        there = {kind: arm for kind, arm in names.items() if arm in tuned.arms}
        if not there:
            continue
        kept = [f"{kind} {percent(tuned.mean(scenario, arm))}" for kind, arm in there.items()]
        whole = percent(tuned.mean(scenario, "full"))
        listed = f"Refused after fine-tuning on {scenario}, {whole} with nothing frozen: "
        for kind, reference in (("units", "layers"), ("both", "units"), ("units", "random"), ("layers", "random")):
            shows, text = keeps_refusal(tuned.against(scenario, there[kind], there[reference]), reference)
            effect = f"At the parameters of {budget} of the safety layers, freezing {kind} keeps more than {reference}"
            extra = f" {listed}{join(kept)}." if kind == "units" and reference == "layers" else ""
            yield effect, "where the papers meet", shows, text + extra
