"""What is left without units: refusals, and beside them how far the first tokens of ordinary answers move."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.progress import track
from safecircuits.base.stats import Share
from safecircuits.behavior.divergence import KLReference
from safecircuits.behavior.evaluate import judged
from safecircuits.behavior.generate import generate
from safecircuits.behavior.verdict_table import Verdicts
from safecircuits.hooks.ablate import UnitValues, ablated
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "nothing"


@dataclass(frozen=True)
class Removed(Result):
    """What a model does without sets of units, the intact model first (``nothing``).

    Attributes:
        names, units: of the sets, and how many units each has.
        planted: how many of them are planted; −1 where that is not known.
        refused: malicious prompts.
        incoherent: how many of the completions are no language.
        kl: of the intact model's first-token distribution from the one without the units, on ordinary prompts, in nats.
    """

    names: tuple[str, ...]
    units: tuple[int, ...]
    planted: tuple[int, ...]
    refused: Bool[Tensor, "set malicious"]
    incoherent: tuple[int, ...]
    kl: Float[Tensor, "set ordinary"]

    def refusal(self, name: str) -> Share:
        """The share of malicious prompts that is refused without a set."""
        return Share.of(self.refused[self.names.index(name)])

    def moved(self, name: str) -> float:
        """The mean first-token KL without a set."""
        return float(self.kl[self.names.index(name)].mean())

    def to_frame(self) -> pd.DataFrame:
        """One row a set."""
        import pandas as pd

        return pd.DataFrame(
            {
                "removed": self.names,
                "units": self.units,
                "planted": [None if n < 0 else n for n in self.planted],
                "malicious_refused": [self.refusal(name).rate for name in self.names],
                "incoherent": self.incoherent,
                "first_token_kl": [self.moved(name) for name in self.names],
                "malicious_refused_low": [self.refusal(name).interval[0] for name in self.names],
                "malicious_refused_high": [self.refusal(name).interval[1] for name in self.names],
            }
        )


def remove(
    model: HookedModel,
    sets: Mapping[str, FreezeMask],
    *,
    malicious: PromptSet,
    ordinary: PromptSet,
    to: UnitValues,
    spare: int,
    known: FreezeMask | None,
    detector: str,
    max_new_tokens: int,
    template: str = "auto",
) -> Removed:
    """Set each of the sets of units to ``to`` beyond the first ``spare`` positions, and measure what is left."""
    own = KLReference.of(model, ordinary, n_tokens=1, template=template)
    rows: list[dict[str, Any]] = []
    for name, units in track([(NOTHING, None), *sets.items()], "removals"):
        with nullcontext() if units is None else ablated(model, units, to=to, spare=spare):
            left = _ask(model, malicious, detector, max_new_tokens, template)
            kl = own.divergence(model).first
        count = 0 if units is None else units.n_units()
        among = -1 if known is None else 0 if units is None else (units & known).n_units()
        rows.append({"name": name, "units": count, "planted": among, "left": left, "kl": kl})
    return Removed(
        names=tuple(row["name"] for row in rows),
        units=tuple(row["units"] for row in rows),
        planted=tuple(row["planted"] for row in rows),
        refused=torch.stack([row["left"].refused for row in rows]),
        incoherent=tuple(row["left"].tally.incoherent for row in rows),
        kl=torch.stack([row["kl"] for row in rows]).float(),
    )


def _ask(model: HookedModel, malicious: PromptSet, detector: str, tokens: int, template: str) -> Verdicts:
    answers = generate(model, malicious, max_new_tokens=tokens, template=template)
    return judged({"malicious": answers}, detector, unchanged=model, template=template)["malicious"]
