"""The defences that are attacked, each beside its control."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from safecircuits import organism
from safecircuits.baselines import (
    AsFt,
    Booster,
    Ema,
    Ewc,
    Lisa,
    Lora,
    Nlsr,
    OnlyUnits,
    ProjectedUnits,
    Resta,
    SafeDelta,
    SafeLora,
    TokenConstrained,
    Vaccine,
    WiseFt,
    moved_most,
)
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.organism.grammar import examples
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.arms import Arm, full
from safecircuits.studies.preparation import Preparation
from safecircuits.studies.ssah import as_many_random, lora_arm, rewound_arm, scu_top_cu
from safecircuits.training.settings import TrainingSettings
from safecircuits.units.groups import classify_units
from safecircuits.units.importance import score_units

SCU, UCU, RU = 0.013, 0.133, 0.148
"""SSAH's shares of all units."""
UNALIGNED = "unaligned"
"""What the aligned model was before."""


def main_arms(freeze: Arm) -> list[Arm]:
    """Nothing, freezing, as much elsewhere, rewinding, and adapters alone."""
    random = replace(as_many_random(freeze), name="random mask")
    return [full(), freeze, random, replace(rewound_arm(freeze), name="rewind"), lora_arm(Lora())]


def units(model: str) -> Arm:
    """What SSAH freezes first: the safety-critical units and the top complex ones."""
    loaded = load_model(model)
    scores = [score_units(loaded, organism.prompts(kind, "train", n=128)) for kind in ("malicious", "utility")]
    arm = scu_top_cu(classify_units(*scores, scu=SCU, ucu=UCU, ru=RU))
    return replace(arm, name="freeze")


def other_arms(freeze: Arm, align_steps: int, align_batch: int) -> list[Arm]:
    """Repairs, constrained training, and alignment that means to last, each beside plain alignment of its kind."""
    mask, refused = _mask(freeze), organism.prompts("malicious", "train", n=64)
    return [
        full(),
        Arm("safe-lora", "nothing (SafeLoRA)", method=SafeLora(UNALIGNED)),
        Arm("safe-delta", "nothing (Safe Delta)", method=SafeDelta(refused)),
        Arm("resta", "nothing (RESTA)", method=Resta(UNALIGNED)),
        Arm("wise-ft", "nothing (WiSE-FT)", method=WiseFt(0.5)),
        Arm("ema", "nothing (a moving average)", method=Ema()),
        Arm("nlsr", "nothing (NLSR, of these units)", method=Nlsr(mask, UNALIGNED)),
        Arm("mscp", "nothing (updates of these units projected)", method=ProjectedUnits(mask, UNALIGNED)),
        Arm("token-constrained", "nothing (constrained SFT)", method=TokenConstrained()),
        Arm("asft", "nothing (AsFT)", method=AsFt(UNALIGNED)),
        Arm("ewc", "nothing (EWC)", method=Ewc(refused)),
        Arm("lisa", "nothing (Lisa)", method=Lisa(refused, alignment_steps=1, user_steps=2)),
        Arm("lora, frozen", f"{freeze.frozen} (LoRA, rank {Lora().r})", mask, method=Lora()),
        *_aligned_anew(mask, align_steps, align_batch),
    ]


def _aligned_anew(mask: FreezeMask, steps: int, batch_size: int) -> list[Arm]:
    settings = TrainingSettings(steps=steps, batch_size=batch_size, lr=5e-4)
    moved = moved_most(load_model(UNALIGNED), load_model("aligned"), mask)
    answered = examples("malicious", "train")
    complied = PromptSet("complied", tuple(e.prompt for e in answered), tuple(e.complied for e in answered))

    def arm(name: str, how: str, method: Any = None, frozen: FreezeMask | None = None) -> Arm:
        more: dict[str, Any] = {} if method is None else {"method": method}
        made = Preparation(unaligned=UNALIGNED, data=alignment_data(), settings=settings, mask=frozen, **more)
        return Arm(name, f"nothing; aligned anew{how}", prepare=made)

    return [
        arm("plain alignment", ", plainly"),
        arm("vaccine", " by Vaccine", Vaccine()),
        arm("booster", " by Booster", Booster(complied.take(64, seed=0))),
        arm("safe-neuron", " with these units frozen", frozen=mask),
        arm("only-units", " by these units alone", OnlyUnits(mask)),
        arm("only-units, random", " by as many random units alone", OnlyUnits(FreezeMask.random_units(mask, seed=0))),
        arm("only-units, moved most", " by those units alone that alignment moved most", OnlyUnits(moved)),
    ]


def _mask(freeze: Arm) -> FreezeMask:
    assert freeze.mask is not None
    return freeze.mask


def alignment_data() -> PromptSet:
    """Refusals, and answers to what is to be answered, in about the proportions of the shipped stages."""
    counts = {"malicious": 400, "normal": 320, "utility": 80, "over_rejection": 40}
    first, *rest = (organism.prompts(kind, "train", n=n) for kind, n in counts.items())
    for one in rest:
        first = first + one
    return first
