"""The arms of a fine-tuning study, as data: what each freezes, and by which method (Safety Layers §4.2, A.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.vocabulary import SITES, LayerRange, Site
from safecircuits.baselines.lisa import Lisa
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.preparation import Preparation
from safecircuits.training.method import Method
from safecircuits.training.plain import Plain
from safecircuits.units.selection import top

Scores = Mapping[Site, Float[Tensor, "layer unit"]]
"""One score a unit; a high one means that the unit matters to safety."""


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to fine-tune. Everything else is matched between the arms of a study.

    Attributes:
        name: short and unique in a study.
        frozen: what is frozen, in words.
        mask: what is frozen; None for nothing.
        draw: freeze as much elsewhere, drawn by the run's seed: another contiguous ``"block"`` of as many layers,
            other ``"layers"`` one by one, or ``"units"`` (as many of each site, over all layers).
        method: the way to fine-tune, such as ``Lora(r=16)`` or ``Lisa(refused)``; all weights unless given.
        longer: how many times the epochs of the other arms; above 1, steps are no longer matched.
        prepare: how the model is aligned anew before anybody trains it further, once a seed (``attack_study`` alone).

    Examples:
        >>> arm = sc.studies.Arm("mine", "layers 3 to 5", sc.FreezeMask.layers((3, 5)))
        >>> arm.name, arm.frozen
        ('mine', 'layers 3 to 5')
    """

    name: str
    frozen: str
    mask: FreezeMask | None = None
    draw: Literal["block", "layers", "units"] | None = None
    method: Method = field(default_factory=Plain)
    longer: int = 1
    prepare: Preparation | None = None

    def mask_for(self, shape: ModelShape, seed: int) -> FreezeMask | None:
        """The mask of a run."""
        if self.mask is None or self.draw is None:
            return self.mask if self.mask is None else self.mask.on(shape)
        if self.draw == "units":
            return FreezeMask.random_units(self.mask, shape, seed)
        layers = self.mask.on(shape).whole_layers
        block = LayerRange(min(layers), max(layers))
        return (elsewhere if self.draw == "block" else other_layers)(block, shape, seed)

    def describe(self) -> dict[str, Any]:
        """What decides a run of this arm, besides the mask itself."""
        return {"frozen": self.frozen, "draw": self.draw, "method": self.method.record(), "longer": self.longer}


Block = LayerRange | Sequence[int]
"""A block of layers: a LayerRange or a (first, last) pair, 0-indexed and inclusive."""


def full() -> Arm:
    """Full fine-tuning: nothing is frozen. What the other arms are compared with."""
    return Arm("full", "nothing")


def sppft(block: Block, name: str = "sppft") -> Arm:
    """Safely partial-parameter fine-tuning: attention and MLP of the block are frozen, its norms are not (§4.1)."""
    block = LayerRange.of(block)
    return Arm(name, f"layers {block}", FreezeMask.layers(block))


def before_block(block: Block) -> Arm:
    """All layers before the block are frozen instead of it (Table 8)."""
    block = LayerRange.of(block)
    if block.first == 0:
        raise ValueError(f"no layer comes before the block {block}")
    return sppft((0, block.first - 1), "before")


def after_block(block: Block, n_layers: int) -> Arm:
    """All layers after the block are frozen instead of it (Table 8)."""
    block = LayerRange.of(block, n_layers)
    if block.last == n_layers - 1:
        raise ValueError(f"no layer comes after the block {block} of a model with {n_layers} layers")
    return sppft((block.last + 1, n_layers - 1), "after")


def partial_block(block: Block, share: float = 0.5) -> Arm:
    """Only the lower part of the block is frozen (A.4.6 says that it helps less, without numbers)."""
    block = LayerRange.of(block)
    n = round(share * len(block))
    if not 1 <= n < len(block):
        raise ValueError(f"a share of {share} of the block {block} is {n} layers: there is no part to freeze")
    return sppft((block.first, block.first + n - 1), "partial")


def other_block(block: Block) -> Arm:
    """Another contiguous block of as many layers, drawn by seed; see ``elsewhere``."""
    block = LayerRange.of(block)
    return Arm("other_block", f"{len(block)} other layers in a row, drawn by seed", FreezeMask.layers(block), "block")


def random_units(block: Block) -> Arm:
    """As many neurons and heads as the block has, drawn by seed over all layers."""
    block = LayerRange.of(block)
    return Arm("random_units", f"as many units as in layers {block}, by seed", FreezeMask.layers(block), "units")


def nfft(scores: Scores, block: Block, shape: ModelShape, what: str = "given") -> Arm:
    """Freeze the units that a score holds most safety-critical, in the block's proportion (NFFT, Table 2).

    As many of each site as the block has, so that the frozen share of parameters is the block's, but for key/value
    heads that several query heads share. Units chosen otherwise, such as by Wei et al.'s set difference, are a mask
    already: ``Arm("nfft", "…", set_difference(...)["SCU"])``.

    Args:
        scores: by site, one a unit, such as ``score_units(...).scores`` or ``classify_units(...).difference``.
        what: the scores in words, for the record.

    Raises:
        ValueError: if a site is missing or has other units than the model.
    """
    block = LayerRange.of(block, shape.n_layers)
    mask = FreezeMask.of_units({}, shape)
    for site in SITES:
        expected = (shape.n_layers, shape.n_units(site))
        if site not in scores or tuple(scores[site].shape) != expected:
            found = tuple(scores[site].shape) if site in scores else "none"
            raise ValueError(f"NFFT needs {site} scores of shape {expected}, found {found}: score both sites")
        mask |= top({site: scores[site]}, len(block) * shape.n_units(site), shape)
    mask = replace(mask, provenance={"nfft": what})
    return Arm("nfft", f"as many units as in layers {block}, by {what} scores", mask)


def lisa_arm(method: Lisa) -> Arm:
    """Lisa with nothing frozen: steps on its alignment data and on the user's in turn, with a proximal term."""
    return Arm("lisa", "nothing (Lisa)", method=method)


def paper_arms(
    block: Block, shape: ModelShape, *, scores: Scores | None = None, alignment: PromptSet | None = None
) -> tuple[Arm, ...]:
    """All arms of the paper and the controls that it lacks, those that this block and these arguments allow.

    Examples:
        >>> arms = sc.studies.paper_arms((3, 5), sc.ModelShape.of(model))
        >>> [arm.name for arm in arms]
        ['full', 'sppft', 'before', 'after', 'partial', 'other_block', 'random_units']
    """
    block = LayerRange.of(block, shape.n_layers)
    arms = [full(), sppft(block)]
    if block.first > 0:
        arms.append(before_block(block))
    if block.last < shape.n_layers - 1:
        arms.append(after_block(block, shape.n_layers))
    if len(block) > 1:
        arms.append(partial_block(block))
    if len(block) < shape.n_layers:
        arms += [other_block(block), random_units(block)]
    if scores is not None:
        arms.append(nfft(scores, block, shape))
    if alignment is not None:
        arms.append(lisa_arm(Lisa(alignment)))
    return tuple(arms)


def elsewhere(block: LayerRange, shape: ModelShape, seed: int) -> FreezeMask:
    """A contiguous block of as many layers, drawn from those that share the fewest layers with ``block``."""
    starts = [first for first in range(shape.n_layers - len(block) + 1) if first != block.first]
    if not starts:
        raise ValueError(f"the block {block} is the whole model: there is no other block to freeze")
    blocks = [LayerRange(first, first + len(block) - 1) for first in starts]
    fewest = min(block.overlap(other) for other in blocks)
    candidates = [other for other in blocks if block.overlap(other) == fewest]
    generator = torch.Generator().manual_seed(seed)
    return FreezeMask.layers(candidates[int(torch.randint(len(candidates), (1,), generator=generator))], shape)


def other_layers(layers: LayerRange, shape: ModelShape, seed: int) -> FreezeMask:
    """As many layers as ``layers`` has, drawn one by one from those outside it as far as they go."""
    generator = torch.Generator().manual_seed(seed)
    outside = [layer for layer in range(shape.n_layers) if layer not in layers]
    drawn = torch.randperm(len(outside), generator=generator)[: len(layers)].tolist()
    return FreezeMask.layers({outside[i] for i in drawn}, shape)
