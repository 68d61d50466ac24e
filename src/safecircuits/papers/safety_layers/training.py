"""Fine-tuning (§4): what each arm freezes, what is left of refusal, and what freezing saves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from safecircuits.base.notices import notify
from safecircuits.base.progress import say
from safecircuits.base.vocabulary import LayerRange
from safecircuits.baselines.lisa import Lisa
from safecircuits.papers.conclusion import Conclusion, kept_by
from safecircuits.papers.page import StudyPage, compared_table, finetuning_exhibit, finetuning_tables
from safecircuits.papers.part import Maybe
from safecircuits.papers.safety_layers.localization import DECISION, NOT_LOCATED, located
from safecircuits.papers.safety_layers.settings import PAPER, SafetyLayers
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.arms import Arm, lisa_arm, paper_arms, sppft
from safecircuits.studies.comparison import At
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.hyperparameters import settings_for
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.units.groups import set_difference
from safecircuits.units.importance import score_units

NFFT_P = 0.1
"""Share of units held useful and therefore not frozen by NFFT; the paper names neither score nor shares."""


DRAWN_ARMS = ("full", "sppft", "decision layers", "nfft", "other_block", "lisa")
"""More lines than these cannot be told apart; every arm is in the tables."""


def arms_of(study: SafetyLayers) -> tuple[Arm, ...]:
    """The paper's arms on the located block, and freezing the decision layers where those are others."""
    p, decision = study.asked, study[DECISION].layers
    block = located(study).layers
    if len(block) == study.shape.n_layers and decision is not None:  # freezing everything is no arm
        block = decision
    arms = paper_arms(block, study.shape)
    if p.refused is not None and p.utility is not None:
        arms += (_nfft(study, p.refused, p.utility, block),)
    if p.refused is not None:
        arms += (lisa_arm(study.settings.lisa or _lisa(study, p.refused)),)
    if decision is not None and decision != block:
        arms += (sppft(decision, "decision layers"),)
    return arms


def _lisa(study: SafetyLayers, refused: PromptSet) -> Lisa:
    """As published, or in proportion where a run would end before the user's data."""
    s = study.settings
    shortest = min(settings_for(s.training, study.source, one).steps_on(len(one.train)) for one in s.scenarios)
    published = Lisa(refused)
    if shortest > published.alignment_steps:
        return published
    scaled = published.scaled(shortest)
    notify(
        f"a run of {shortest} steps is too short for Lisa's published {published.alignment_steps} steps on alignment "
        f"data and {published.user_steps} on the user's: it takes {scaled.alignment_steps} and {scaled.user_steps}"
    )
    return scaled


def _nfft(study: SafetyLayers, refused: PromptSet, answered: PromptSet, block: LayerRange) -> Arm:
    """Units of Wei et al.'s set difference by SNIP, as large a share of the unit parameters as the block is."""
    say("unit scores for NFFT")
    safety, utility = (
        score_units(study.model, data, method="snip", template=study.settings.template) for data in (refused, answered)
    )
    share = len(block) / study.shape.n_layers
    groups = set_difference(safety, utility, p=NFFT_P, result=share, share_of="parameters")
    return Arm("nfft", f"{share:.0%} of the unit parameters, by SNIP set difference", groups["SCU"])


def _tune(study: SafetyLayers) -> FinetuningStudy:
    """Every scenario, arm and seed."""
    arms = arms_of(study)
    study.let_go()
    say("fine-tuning study")
    p, s = study.asked, study.settings
    n = s.finetuning_prompts
    return finetuning_study(
        study.source,
        s.scenarios,
        arms,
        malicious=p.measured.at_most(n),
        over_rejection=p.over_rejection.at_most(n),
        utility=None if p.utility is None else p.utility.at_most(n),
        seeds=s.seeds,
        settings=s.training,
        points=s.points,
        curve_prompts=s.curve_prompts,
        evaluation=s.judging,
        out=study.work("finetuning"),
        **s.placing,
    )


def _section(study: SafetyLayers, made: StudyPage) -> None:
    tuned = study[FINETUNING]
    if tuned is None:
        return
    exhibits = []
    compared = tuned.compare()
    for number, scenario in enumerate(tuned.scenarios):
        table = compared_table([found for found in compared if found.scenario == scenario])
        exhibits.append(finetuning_exhibit(made, f"finetuning_{number}", tuned, scenario, DRAWN_ARMS, [table]))
    frozen = "; ".join(f"{arm}: {what}" for arm, what in tuned.frozen.items())
    seeds = len({run.seed for run in tuned.runs})
    made.add(
        "finetuning",
        "What fine-tuning leaves of refusal",
        f"The same fine-tuning with different parts frozen, {seeds} seeds. Compared with full fine-tuning at equal "
        "steps and, since an arm that learns less also forgets less, at equal loss on the task. "
        f"Frozen in each arm: {frozen}.",
        exhibits,
    )


def _claims(study: SafetyLayers) -> Iterator[Conclusion]:
    tuned = study[FINETUNING]
    if tuned is None:
        return
    for arm, what in (("sppft", "the located block"), ("decision layers", "the decision layers")):
        for scenario in tuned.scenarios:
            if arm in tuned.arms:
                shows, text = kept_by(tuned, scenario, arm, at=get_args(At))
                if arm == "sppft" and not located(study).located:
                    shows, text = "inconclusive", f"{NOT_LOCATED} {text}"
                yield f"Freezing {what} keeps refusal in {scenario}", f"{PAPER} §4", shows, text
    yield from _savings(tuned)


def _savings(tuned: FinetuningStudy) -> Iterator[Conclusion]:
    if not {"full", "sppft"} <= set(tuned.arms):
        return
    costs = tuned.summary().groupby("arm")[["step_seconds", "gradient_bytes", "optimizer_bytes"]].mean()
    ratio = costs.loc["sppft"] / costs.loc["full"]
    text = (
        f"Against full fine-tuning: time of a step × {ratio['step_seconds']:.2f}, memory of gradients × "
        f"{ratio['gradient_bytes']:.2f}, of the optimizer's state × {ratio['optimizer_bytes']:.2f}."
    )
    shows = "yes" if ratio.max() < 0.95 else "unclear" if ratio.min() < 0.95 else "no"
    yield "Freezing saves time and memory", f"{PAPER} abstract", shows, text


FINETUNING: Maybe[SafetyLayers, FinetuningStudy] = Maybe(
    "finetuning",
    FinetuningStudy,
    _tune,
    when=lambda study: study.settings.scenarios,
    section=_section,
    claims=_claims,
    tables=lambda study: finetuning_tables("finetuning", study[FINETUNING]),
)
