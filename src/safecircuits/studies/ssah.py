"""The arms of SSAH for a fine-tuning study: which units are frozen, in which phases, and LoRA beside them (§4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import LayerRange
from safecircuits.baselines.lora import Lora
from safecircuits.baselines.rewinding import Rewind
from safecircuits.baselines.two_phases import TwoPhases
from safecircuits.baselines.virtual_tokens import LlamaAdapter, PrefixTuning
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.studies.arms import Arm, full
from safecircuits.training.plain import Plain
from safecircuits.units.groups import UnitGroups

Block = LayerRange | Sequence[int]
TOP_CU = 0.06
"""The share of complex units that is frozen with the safety-critical ones."""


def scu_top_cu(
    groups: UnitGroups,
    share: float = TOP_CU,
    *,
    of: Literal["all", "CU"] = "all",
    by: Literal["difference", "total"] = "difference",
    layers: Block | None = None,
    longer: int = 1,
    phases: bool = False,
) -> Arm:
    """Freeze all SCU and the top CU, the paper's first setting: 7.5 % of Llama-2's units.

    Args:
        share: how many CU, as a share ``of`` all units or of the CU. The paper's sizes add up with all units.
            As large a part of the neurons as of the heads, where the groups are (``share_of``).
        by: which CU are on top: the highest S − U, or the highest S + U. The paper does not say.
        layers: freeze in these layers alone, as the paper does in Llama-3 (its first twelve).
        longer: epochs are as many times those of the other arms; the paper doubles them for frozen runs.
        phases: freeze all SCU and all CU in the first epoch, as the paper does.

    Raises:
        ValueError: for a share that the CU do not have, or when nothing would be frozen.
    """
    n_cu = groups["CU"].n_units()
    n = round(share * (groups.n_units if of == "all" else n_cu))
    if of not in ("all", "CU") or not 0 <= n <= n_cu:
        raise ValueError(f"a share of {share:g} of {of!r} is {n} units, but there are {n_cu} CU; of is 'all' or 'CU'")
    # Where shares are of neurons and of heads, so is this one.
    apart = groups.provenance.get("share_of", "units") == "units"
    mask = groups["SCU"] | groups.top(n, "CU", by, proportionate=apart)
    method = TwoPhases(_within(groups["SCU"] | groups["CU"], layers)) if phases else Plain()
    order = {"difference": "S − U", "total": "S + U"}[by]
    words = f"SCU and the {n} CU of highest {order}{_where(layers)}{'; first epoch all CU' if phases else ''}"
    return Arm("scu_top_cu", words, _within(mask, layers), method=method, longer=longer)


def scu_all_cu(groups: UnitGroups, *, layers: Block | None = None, longer: int = 1) -> Arm:
    """Freeze all SCU and all CU, the paper's second setting: 72 % of Llama-2's units."""
    mask = _within(groups["SCU"] | groups["CU"], layers)
    return Arm("scu_all_cu", f"SCU and CU{_where(layers)}", mask, longer=longer)


def as_many_random(arm: Arm) -> Arm:
    """The control that the paper lacks: as many units of each site as the arm freezes, drawn by the run's seed.

    Whatever else the arm does (longer training) it does, too; it has no phases.
    """
    if arm.mask is None:
        raise ValueError(f"arm {arm.name!r} freezes nothing, so there is nothing to draw as much of")
    return Arm(f"random_{arm.name}", f"as many units as {arm.name}, by seed", arm.mask, draw="units", longer=arm.longer)


def rewound_arm(arm: Arm) -> Arm:
    """What the arm freezes is trained like all else, and put back when training is over (Wei et al. §5).

    The curve and the figures are of the model as it would be put back at each point.

    Examples:
        >>> block = sc.studies.Arm("block", "layers 3 to 5", sc.FreezeMask.layers((3, 5), model))
        >>> sc.studies.rewound_arm(block).frozen
        'nothing; afterwards put back: layers 3 to 5'
    """
    if arm.mask is None:
        raise ValueError(f"arm {arm.name!r} freezes nothing, so there is nothing to put back")
    words = f"nothing; afterwards put back: {arm.frozen}"
    return Arm(f"rewound_{arm.name}", words, arm.mask, draw=arm.draw, method=Rewind(), longer=arm.longer)


def lora_arm(method: Lora | None = None) -> Arm:
    """LoRA on the same data in the same order for as many steps; nothing is frozen by a mask."""
    method = method or Lora()
    return Arm("lora", f"all weights (LoRA, rank {method.r})", method=method)


def prefix_arm(method: PrefixTuning | None = None) -> Arm:
    """Prefix tuning on the same data in the same order for as many steps.

    Arms of a study share their rate. Virtual tokens learn slowly at one that suits weights: a study of their own may be
    fairer to them.

    Examples:
        >>> sc.studies.prefix_arm(sc.baselines.PrefixTuning(8)).frozen
        'all weights (prefix tuning, 8 tokens)'
    """
    method = method or PrefixTuning()
    return Arm("prefix", f"all weights (prefix tuning, {method.virtual_tokens} tokens)", method=method)


def llama_adapter_arm(method: LlamaAdapter | None = None) -> Arm:
    """LLaMA-Adapter on the same data in the same order for as many steps; of Llama, Mistral and GPT-2 alone.

    Examples:
        >>> sc.studies.llama_adapter_arm(sc.baselines.LlamaAdapter(8)).frozen
        'all weights (LLaMA-Adapter, 8 tokens)'
    """
    method = method or LlamaAdapter()
    return Arm("llama_adapter", f"all weights (LLaMA-Adapter, {method.virtual_tokens} tokens)", method=method)


@checked
def ssah_arms(
    groups: UnitGroups, *, layers: Block | None = None, longer: int = 2, phases: bool = True, lora: bool = False
) -> tuple[Arm, ...]:
    """Full fine-tuning, both settings of the paper each with a random control, and LoRA on request.

    The paper's other parameter-efficient rows are ``prefix_arm()`` and ``llama_adapter_arm()``.

    Args:
        longer, phases: the paper's doubled epochs and two-phase schedule; ``longer=1`` and ``phases=False`` match the
            steps of all arms instead.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> groups = sc.classify_units(safety, answers, scu=0.01, ucu=0.1, ru=0.1)
        >>> [arm.name for arm in sc.studies.ssah_arms(groups)]
        ['full', 'scu_top_cu', 'random_scu_top_cu', 'scu_all_cu', 'random_scu_all_cu']
    """
    top = scu_top_cu(groups, layers=layers, longer=longer, phases=phases)
    every = scu_all_cu(groups, layers=layers, longer=longer)
    arms = (full(), top, as_many_random(top), every, as_many_random(every))
    return (*arms, lora_arm()) if lora else arms


def _within(mask: FreezeMask, layers: Block | None) -> FreezeMask:
    kept = mask if layers is None else mask.restrict(LayerRange.of(layers, len(mask.mlp)))
    if not kept:
        raise ValueError(f"no unit of these groups lies{_where(layers)}: there is nothing to freeze")
    return kept


def _where(layers: Block | None) -> str:
    return "" if layers is None else f" in layers {LayerRange.of(layers)}"
