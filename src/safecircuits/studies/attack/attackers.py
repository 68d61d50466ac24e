"""Who attacks: fine-tuning on rows of the attacker's choice, or an edit of the weights without any training.

Each attacker has a name, a family, and how many harmful examples of its own it must bring. What it measures on the way
are the points of its trajectory: a run of training is stopped at several steps, pruning at several sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Literal

from safecircuits.baselines.lora import Lora
from safecircuits.behavior.generate import generate
from safecircuits.direction.interventions import direction_ablated
from safecircuits.direction.refusal import refusal_direction
from safecircuits.hooks.ablate import ablated
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.prompts.prompt_set import PromptSet, require_answered
from safecircuits.studies.arms import Arm
from safecircuits.training.method import Method
from safecircuits.training.plain import Plain
from safecircuits.units.groups import classify_units
from safecircuits.units.importance import score_units

Family = Literal["harmful data", "mixed data", "harmless data", "edit"]
"""What an attacker brings: harmful rows alone, harmful rows among ordinary ones, no harmful row, or no data at all."""
Access = Literal["training", "weights"]
"""What the attacker is let do: fine-tune by the defender's own training, or anything at all with the weights."""
SHARES = (0.005, 0.013, 0.03, 0.06, 0.12)
"""Shares of all units that are pruned; the second is SSAH's of Llama-2's safety-critical ones."""


class CannotAttackError(ValueError):
    """This attacker has no way to attack this arm, or found none; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DataAttack:
    """Fine-tuning on rows that the attacker brings, by the arm's method and with the arm's mask.

    Attributes:
        name: unique in a study.
        family: what the rows are.
        rows: prompts with responses, or a function that draws them by the run's seed.
        harmful: how many of the rows are harmful, which is what the attacker must find.
        lr: the learning rate.
        lora: adapters in the place of all weights, where the arm leaves that to the attacker.

    Raises:
        ValueError: for rows without responses, and for an attacker of a harmful family that has no harmful row.

    Examples:
        >>> rows = sc.organism.prompts("normal", "train", n=8)
        >>> one = sc.studies.DataAttack(name="a harmless task", family="harmless data", rows=rows, harmful=0, lr=1e-4)
        >>> one.data(seed=0) == rows
        True
    """

    name: str
    family: Family
    rows: PromptSet | Callable[[int], PromptSet]
    harmful: int
    lr: float
    lora: Lora | None = None

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"attacker {self.name!r}: lr must be above 0, not {self.lr}")
        if (self.harmful > 0) != (self.family in ("harmful data", "mixed data")):
            raise ValueError(
                f"attacker {self.name!r} is of the family {self.family!r} and has {self.harmful} harmful rows: an "
                "attacker with harmful data needs harmful rows of its own, and one without has none"
            )
        if isinstance(self.rows, PromptSet):
            require_answered(self.rows, f"rows of attacker {self.name!r}")

    def data(self, seed: int) -> PromptSet:
        """What is trained on."""
        return self.rows if isinstance(self.rows, PromptSet) else self.rows(seed)

    def method_on(self, arm: Arm) -> Method:
        """The arm's method, with the attacker's adapters where it leaves that choice.

        Raises:
            CannotAttackError: where it leaves none.
        """
        method = arm.method
        if self.lora is None or isinstance(method, Lora):
            return method
        if isinstance(method, Plain) and not method.only_units:
            return self.lora
        # Some methods have a training that they do not leave open.
        if "training" in signature(type(method)).parameters and isinstance(method.training, Plain | Lora):  # type: ignore[attr-defined]
            return replace(method, training=self.lora)  # type: ignore[type-var]  # every such method is a dataclass
        raise CannotAttackError(f"{method.name} says itself what trains, so that the attacker cannot choose adapters")

    def describe(self, seed: int) -> dict[str, Any]:
        """What decides its trajectory beside the arm."""
        lora = None if self.lora is None else self.lora.record()
        return {"kind": "data", "rows": self.data(seed).fingerprint, "lr": self.lr, "lora": lora, "seed": seed}


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectionAttack:
    """The refusal direction is found and taken out of everything that is written to the residual stream.

    That is an edit of the weights (``sc.direction.orthogonalised``) and needs no training (Arditi et al. 2024).

    Attributes:
        harmful_prompts, harmless_prompts: the attacker's own, with which the direction is found and chosen.

    Examples:
        >>> sc.studies.DirectionAttack(harmful_prompts=malicious, harmless_prompts=normal).family
        'edit'
    """

    harmful_prompts: PromptSet
    harmless_prompts: PromptSet
    name: str = "refusal direction ablated"
    family: Family = "edit"

    @property
    def harmful(self) -> int:
        """Harmful prompts, of which no answers are needed."""
        return len(self.harmful_prompts)

    def describe(self, mask: FreezeMask | None) -> dict[str, Any]:  # noqa: ARG002  it has no use for it
        """What decides its points beside the model."""
        sets = {"harmful": self.harmful_prompts.fingerprint, "harmless": self.harmless_prompts.fingerprint}
        return {"kind": "direction", **sets}

    def edits(self, model: Any, mask: FreezeMask | None, asking: Asking) -> Iterator[Edit]:  # noqa: ARG002
        """The one edit, with nothing to choose.

        Raises:
            CannotAttackError: for a model in which there is no such direction.
        """
        options = {name: value for name, value in asking.items() if name in ("detector", "template", "system")}
        try:
            found = refusal_direction(
                model, self.harmful_prompts, self.harmless_prompts, rule="bypass", controls=0, **options
            )
        except ValueError as error:  # of a model that refuses nothing there are no refusing tokens, for one
            raise CannotAttackError(f"no refusal direction: {error}") from error
        if found.layer is None:
            raise CannotAttackError(f"no refusal direction: {found.verdict}")
        yield {}, direction_ablated(model, found.chosen)


@dataclass(frozen=True, kw_only=True, eq=False)
class PruningAttack:
    """Units are cut out: those of the arm's mask, by an attacker who knows it, or those that its own scores name.

    Its scores are of the model's own answers: activations on harmful prompts minus those on harmless ones, as SSAH's.
    Zeroing a unit is removing it from the weights (``prune_units``).

    Attributes:
        harmful_prompts, harmless_prompts: the attacker's own.
        knows_mask: whether it prunes what the arm freezes.
        shares: of all units, from the highest score; each is a point of its trajectory. A known mask is cut as it is.

    Examples:
        >>> sc.studies.PruningAttack(harmful_prompts=malicious, harmless_prompts=normal, knows_mask=True).name
        'pruning, mask known'
    """

    harmful_prompts: PromptSet
    harmless_prompts: PromptSet
    knows_mask: bool = False
    shares: tuple[float, ...] = SHARES
    family: Family = "edit"

    @property
    def name(self) -> str:
        """By what it knows."""
        return "pruning, mask known" if self.knows_mask else "pruning, mask not known"

    @property
    def harmful(self) -> int:
        """Harmful prompts, of which no answers are needed; none for who knows the mask."""
        return 0 if self.knows_mask else len(self.harmful_prompts)

    def describe(self, mask: FreezeMask | None) -> dict[str, Any]:
        """What decides its points beside the model."""
        if self.knows_mask:
            return {"kind": "pruning", "mask": None if mask is None else mask.fingerprint}
        sets = {"harmful": self.harmful_prompts.fingerprint, "harmless": self.harmless_prompts.fingerprint}
        return {"kind": "pruning", "shares": list(self.shares), **sets}

    def edits(self, model: Any, mask: FreezeMask | None, asking: Asking) -> Iterator[Edit]:
        """An edit a share.

        Raises:
            CannotAttackError: for who knows the mask where there is none.
        """
        if self.knows_mask:
            if mask is None:
                raise CannotAttackError("the arm has no mask that could be known")
            yield {"share": share_of_units(mask)}, ablated(model, mask)
            return
        template = asking.get("template", "auto")
        scores = []
        for asked in (self.harmful_prompts, self.harmless_prompts):
            said = generate(model, asked, template=template, max_new_tokens=asking.get("max_new_tokens") or ANSWER)
            scores.append(score_units(model, PromptSet(asked.name, asked.prompts, said.texts), template=template))
        for share in self.shares:
            groups = classify_units(*scores, scu=share, ucu=0.0, ru=0.0)
            yield {"share": share}, ablated(model, groups["SCU"])


Attacker = DataAttack | DirectionAttack | PruningAttack
Asking = dict[str, Any]
"""How models are asked and judged, by the names of ``evaluate``."""
Edit = tuple[dict[str, float], AbstractContextManager[None]]
"""What was chosen, and the model with the edit inside the block."""
ANSWER = 16
"""Tokens of the answers that units are scored on, unless the study says."""


def share_of_units(mask: FreezeMask) -> float:
    """How many of all neurons and heads a mask names."""
    named = mask.n_units()
    return named / (named + (~mask).n_units())
