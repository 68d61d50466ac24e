"""The part of the Safety Layers study that trains: what each arm freezes, and what is left of refusal (§4)."""

from __future__ import annotations

from collections.abc import Sequence

from safecircuits.base.notices import notify
from safecircuits.base.progress import say
from safecircuits.base.vocabulary import LayerRange
from safecircuits.baselines.lisa import LisaSettings
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import HookedModel
from safecircuits.papers.safety_layers.parts import Work
from safecircuits.studies.arms import Arm, lisa_arm, paper_arms, sppft
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.hyperparameters import hyperparameters, steps_of
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.units.groups import set_difference
from safecircuits.units.importance import score_units

NFFT_P = 0.1
"""Share of units held useful and therefore not frozen by NFFT; the paper names neither score nor shares."""


def arms_of(work: Work, model: HookedModel) -> tuple[Arm, ...]:
    """The paper's arms on the located block, and freezing the decision layers where those are others."""
    study = work.study
    decision = study.decision.layers if study.decision is not None else None
    whole = len(study.block) == study.shape.n_layers  # freezing everything is no arm
    block = decision if whole and decision is not None else study.block
    arms = paper_arms(block, study.shape)
    if work.prompts.refused is not None and work.prompts.utility is not None:
        arms += (_nfft(work, model, block),)
    if work.prompts.refused is not None:
        arms += (lisa_arm(work.prompts.refused, _lisa(work)),)
    if decision is not None and decision != block:
        arms += (sppft(decision, "decision layers"),)
    return arms


def _lisa(work: Work) -> LisaSettings:
    """As given, or as published; the published ones in proportion where a run would end before the user's data."""
    if work.settings.lisa is not None:
        return work.settings.lisa
    training = work.settings.training
    shortest = min(
        steps_of(scenario, hyperparameters(training, work.study.source, scenario))
        for scenario in work.settings.scenarios
    )
    published = LisaSettings()
    if shortest > published.alignment_steps:
        return published
    scaled = published.scaled(shortest)
    notify(
        f"a run of {shortest} steps is too short for Lisa's published {published.alignment_steps} steps on alignment "
        f"data and {published.user_steps} on the user's: it takes {scaled.alignment_steps} and {scaled.user_steps}"
    )
    return scaled


def _nfft(work: Work, model: HookedModel, block: LayerRange) -> Arm:
    """Units of Wei et al.'s set difference by SNIP, as large a share of the unit parameters as the block is."""
    say("unit scores for NFFT")
    assert work.prompts.refused is not None
    assert work.prompts.utility is not None
    template = work.settings.template
    safety = score_units(model, work.prompts.refused, method="snip", template=template)
    utility = score_units(model, work.prompts.utility, method="snip", template=template)
    share = len(block) / work.study.shape.n_layers
    groups = set_difference(safety, utility, p=NFFT_P, result=share, share_of="parameters")
    return Arm("nfft", f"{share:.0%} of the unit parameters, by SNIP set difference", FreezeMask.units(groups, "SCU"))


def tuned(work: Work, arms: Sequence[Arm]) -> FinetuningStudy:
    """Every scenario, arm and seed."""
    say("fine-tuning study")
    study, run, p, s = work.study, work.run, work.prompts, work.settings
    n = s.finetuning_prompts

    def tune() -> FinetuningStudy:
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
            out=run.work("finetuning"),
            **s.placing,
        )

    return run.kept("finetuning", FinetuningStudy, tune)
