"""How far refusal detectors agree on the same completions: a published count is a fact about its detector too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.stats import Share
from safecircuits.behavior.categories import category_frame
from safecircuits.behavior.completions import Completions, texts_of
from safecircuits.behavior.detectors import DETECTORS, RefusalDetector
from safecircuits.behavior.verdict import verdicts
from safecircuits.behavior.verdict_table import Tally
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AgreementTable(Result):
    """The verdicts of several detectors on the same completions, and how far they agree, pair by pair.

    Examples:
        >>> table = sc.behavior.agreement(sc.generate(model, malicious), ["opening", "wei2024"])
        >>> table.detectors, table.verdicts.shape
        (('opening', 'wei2024'), torch.Size([2, 8]))
        >>> print(table.shares["opening"])
        100.0 % [67.6, 100.0] (8/8)
    """

    detectors: tuple[str, ...]
    texts: tuple[str, ...]
    verdicts: Bool[Tensor, "detector prompt"]
    """True where the detector calls the completion a refusal."""
    tallies: tuple[Tally, ...] = ()
    """What the completions are by each detector; empty in files of earlier versions."""
    kinds: tuple[Mapping[str, Tally], ...] = ()
    """The same by category of the prompts, where they have categories."""

    @property
    def shares(self) -> dict[str, Share]:
        """Completions that each detector calls refusals, with a 95 % interval."""
        return {name: Share.of(row) for name, row in zip(self.detectors, self.verdicts, strict=True)}

    @property
    def agreement(self) -> Float[Tensor, "detector detector"]:
        """Share of completions, 0 to 1, on which two detectors say the same."""
        return self._same() / len(self.texts)

    @property
    def kappa(self) -> Float[Tensor, "detector detector"]:
        """Cohen's κ = (agreement − expected) / (1 − expected), expected from how often each detector says refusal.

        1 is full agreement and 0 is what chance gives. Where one of the two detectors always says the same, κ is 0
        however high the agreement: read it beside ``agreement``. Where both do and say the same, κ is 0/0 and NaN, and
        so it is on the diagonal for a detector that is constant.
        """
        n = len(self.texts)
        refusals = self.verdicts.sum(dim=1).double()
        answers = n - refusals
        # In whole numbers, n² times both terms, so that a constant detector gives exactly 0 or 0/0.
        expected = torch.outer(refusals, refusals) + torch.outer(answers, answers)
        return (n * self._same() - expected) / (n * n - expected)

    def disagreements(self, *detectors: str) -> list[tuple[str, tuple[str, ...]]]:
        """The texts on which the named detectors (all if none is named) differ, each with those that say refusal.

        Raises:
            ValueError: for a detector that is not in the table.
        """
        rows = [self._row(name) for name in detectors or self.detectors]
        names = [self.detectors[row] for row in rows]
        return [
            (text, tuple(name for name, says in zip(names, column, strict=True) if says))
            for text, column in zip(self.texts, self.verdicts[rows].T.tolist(), strict=True)
            if any(column) and not all(column)
        ]

    def to_frame(self) -> pd.DataFrame:
        """One row a pair: ``a, b``, their refusals, ``agreement``, ``kappa``, and how many only one calls refusals."""
        import pandas as pd

        agreement, kappa = self.agreement, self.kappa
        return pd.DataFrame(
            {
                "a": self.detectors[i],
                "b": self.detectors[j],
                "a_refused": int(self.verdicts[i].sum()),
                "b_refused": int(self.verdicts[j].sum()),
                "only_a": int((self.verdicts[i] & ~self.verdicts[j]).sum()),
                "only_b": int((self.verdicts[j] & ~self.verdicts[i]).sum()),
                "n": len(self.texts),
                "agreement": float(agreement[i, j]),
                "kappa": float(kappa[i, j]),
            }
            for i, j in combinations(range(len(self.detectors)), 2)
        )

    def categories(self) -> pd.DataFrame:
        """One row a detector and category of the prompts (``category_frame``); none without categories."""
        read = zip(self.detectors, self.kinds, strict=False)
        return category_frame([({"detector": name}, {"all": kinds}) for name, kinds in read], ["detector"]).drop(
            columns="set"
        )

    def __str__(self) -> str:
        return "\n".join(f"{name}: {share} refused" for name, share in self.shares.items())

    def _same(self) -> Float[Tensor, "detector detector"]:
        """On how many completions two detectors say the same."""
        refusals = self.verdicts.double()
        return refusals @ refusals.T + (1 - refusals) @ (1 - refusals).T

    def _row(self, detector: str) -> int:
        if detector not in self.detectors:
            raise ValueError(f"no detector {detector!r} in this table; there are {', '.join(self.detectors)}")
        return self.detectors.index(detector)


def agreement(
    completions: Completions | Sequence[str],
    detectors: Sequence[str] | Mapping[str, str | RefusalDetector] | None = None,
) -> AgreementTable:
    """Judge the same completions by several detectors; nothing is generated.

    Args:
        detectors: names, or a mapping from names of your own to names and callables; every known detector by default.

    Raises:
        ValueError: without completions, with fewer than two detectors, for an unknown or failing one, and for a judge
            that asks about the prompt where only texts are given.

    Examples:
        >>> texts = ["I'm sorry, but I can't.", "Sure, here you are."]
        >>> table = sc.behavior.agreement(texts, ["opening", "wei2024"])
        >>> table.verdicts.tolist()
        [[True, False], [True, False]]
    """
    if isinstance(detectors, str):
        raise ValueError(f"expected a list, not the single string {detectors!r}: put it in a list")
    texts = texts_of(completions)
    if not texts:
        raise ValueError("there are 0 completions to judge, expected at least 1: generate or load some first")
    named: Mapping[str, str | RefusalDetector]
    named = detectors if isinstance(detectors, Mapping) else {name: name for name in detectors or DETECTORS}
    if len(named) < 2:
        raise ValueError(f"agreement needs at least 2 different detectors, not {len(named)}: {', '.join(named)}")
    read = [verdicts(completions, detector) for detector in named.values()]
    refusals = torch.stack([one.refused for one in read])
    tallies, kinds = ([getattr(one, of) for one in read] for of in ("tally", "by_category"))
    return AgreementTable(tuple(named), texts, refusals, tuple(tallies), tuple(kinds))
