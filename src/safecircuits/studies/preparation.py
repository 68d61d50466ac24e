"""Defences that come before the attack: a model that is aligned anew, by a method that means to make it last.

Vaccine and Booster train otherwise at the alignment stage; SafeNeuron freezes the safety units meanwhile, so that
others learn to refuse as well; SN-Tune and NeST train the safety units alone. All begin at a model before alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from safecircuits.baselines.earlier import EarlierModel, earlier_model
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.parameters import live_parameters
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.training.loop import finetune
from safecircuits.training.method import Method
from safecircuits.training.plain import Plain
from safecircuits.training.settings import TrainingSettings

WHY = "an arm that is aligned anew begins at the model before alignment"


@dataclass(frozen=True, eq=False, kw_only=True)
class Preparation:
    """How an arm's model is aligned, in the place of the model that a study is of.

    Attributes:
        unaligned: the model that alignment begins at: its name or folder, or the model; of the study's shape.
        data: prompts with the responses that it is to give: refusals of harmful ones, answers to others.
        settings: how long and at which rate.
        method: such as ``Vaccine()``; all weights plainly unless given.
        mask: what is frozen meanwhile (SafeNeuron).

    Raises:
        ValueError: without the unaligned model, and for data without responses.

    Examples:
        >>> refusals = sc.organism.prompts("malicious", "train", n=8)
        >>> settings = sc.TrainingSettings(steps=4)
        >>> made = sc.studies.Preparation(unaligned="unaligned", data=refusals, settings=settings)
        >>> arm = sc.studies.Arm("plainly aligned", "nothing", prepare=made)
        >>> made.record(0)["method"]["name"]
        'plain'
    """

    unaligned: Any
    data: PromptSet
    settings: TrainingSettings
    method: Method = field(default_factory=Plain)
    mask: FreezeMask | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "unaligned", earlier_model(self.unaligned, "unaligned", WHY))
        self.data.require_responses()
        self.method.require(self.settings, freeze=self.mask)

    def record(self, seed: int) -> dict[str, Any]:
        """What decides the model that comes of it."""
        return {
            "unaligned": self._model.fingerprint,
            "data": self.data.fingerprint,
            "settings": self.settings.record(),
            "method": self.method.record(),
            "mask": None if self.mask is None else self.mask.fingerprint,
            "seed": seed,
        }

    def align(self, model: Any, seed: int, keep: Callable[[Any], None]) -> None:
        """Align a copy of the unaligned model, of the backend, precision and device of ``model``; ``keep`` takes it."""
        found = self._model.loaded(model)
        before = {name: p.detach().clone() for name, p in live_parameters(found).items()}
        try:
            finetune(found, self.data, self.mask, self.settings, method=self.method, seed=seed, progress=False)
            keep(found)
        finally:
            for name, parameter in live_parameters(found).items():  # it may be a model of the caller's
                parameter.data.copy_(before[name])

    @property
    def _model(self) -> EarlierModel:
        model: EarlierModel = self.unaligned
        return model
