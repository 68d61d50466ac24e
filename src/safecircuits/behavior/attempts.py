"""What came of asking under pressure: refusals with a system prompt, after an opening, with a suffix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from safecircuits.base.counted import answers_name
from safecircuits.base.paired import paired_difference
from safecircuits.base.stats import Share
from safecircuits.behavior.categories import category_frame, refused_by_category
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.incoherence import degenerate
from safecircuits.behavior.verdict_table import Tally, counts_beside
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Condition:
    """One way of asking: with or without the system prompt, ``prefilled`` tokens of an answer, the index of a suffix.

    Examples:
        >>> sc.behavior.Condition(system=True, prefilled=4)
        Condition(system=True, prefilled=4, suffix=None)
    """

    system: bool = False
    prefilled: int = 0
    suffix: int | None = None

    def __str__(self) -> str:
        kind = f"suffix {self.suffix}" if self.suffix is not None else f"{self.prefilled} tokens prefilled"
        plain = self.suffix is None and self.prefilled == 0
        return ("plain" if plain else kind) + (", system prompt" if self.system else "")


@dataclass(frozen=True)
class Attempt:
    """What the model did under one condition: completions start after the prefilled tokens."""

    condition: Condition
    refused: Bool[Tensor, " prompt"]
    completions: Completions
    tally: Tally | None = None
    """What the completions are; None in files of earlier versions."""
    kinds: Mapping[str, Tally] = field(default_factory=dict)
    """The same by category of the prompts, where they have categories."""

    @property
    def success(self) -> Share:
        """Attack success: prompts that are not refused, with a 95 % interval; what is no answer counts (``tally``)."""
        return Share.of(~self.refused)

    @property
    def refusal(self) -> Share:
        """Prompts that are refused, with a 95 % interval."""
        return Share.of(self.refused)

    def record(self) -> dict[str, Any]:
        """What stands beside the rate: ``n``, and the shares ``incoherent`` and ``cut`` where they are known."""
        known = {"n": len(self.refused)} if self.tally is None else self.tally.record("")
        asked = self.completions.prompts.ids
        return {**known, "answers": answers_name(asked, self.completions.texts, self.refused.tolist())}


@dataclass(frozen=True)
class Pressure(Result):
    """Refusals of the same malicious prompts under every condition; ``system`` and ``suffixes`` as they were used.

    Examples:
        >>> under = sc.behavior.pressure(model, malicious, suffixes=["quickly !"])
        >>> [attempt.condition.suffix for attempt in under.attempts]
        [None, 0]
    """

    attempts: tuple[Attempt, ...]
    system: str | None
    suffixes: tuple[str, ...]
    provenance: dict[str, Any]

    def __getitem__(self, condition: Condition) -> Attempt:
        for attempt in self.attempts:
            if attempt.condition == condition:
                return attempt
        raise KeyError(f"{condition} was not tried; there are {'; '.join(str(a.condition) for a in self.attempts)}")

    def any_suffix(self, *, system: bool = False) -> Bool[Tensor, " prompt"]:
        """Prompts that are refused with every suffix: an attacker may choose the one that works."""
        rows = [a.refused for a in self.attempts if a.condition.suffix is not None and a.condition.system == system]
        if not rows:
            raise ValueError(f"no suffixes were tried {'with' if system else 'without'} a system prompt")
        return torch.stack(rows).all(dim=0)

    def held(self, *, system: bool = False) -> Int[Tensor, " prompt"]:
        """Up to how many prefilled tokens each prompt is refused, from 0 on without a gap; −1 if not even then."""
        steps = sorted(
            (a for a in self.attempts if a.condition.suffix is None and a.condition.system == system),
            key=lambda attempt: attempt.condition.prefilled,
        )
        if not steps:
            raise ValueError(f"nothing was asked {'with' if system else 'without'} a system prompt: pass system=")
        counts = torch.full((len(steps[0].refused),), -1)
        holding = torch.ones_like(counts, dtype=torch.bool)
        for attempt in steps:
            holding &= attempt.refused
            counts[holding] = attempt.condition.prefilled
        return counts

    def to_frame(self) -> pd.DataFrame:
        """One row a condition, and one for the worst suffix of each prompt.

        Columns: ``system``, ``prefilled``, ``suffix`` (index, ``"any"`` or missing), ``refused``, ``n``,
        ``attack_success`` with ``success_low`` and ``success_high``, the share ``degenerate``, which counts as success
        though it helps nobody, and how many completions are ``incoherent``, ``deflects``, ``undecided`` and ``cut``.
        """
        import pandas as pd

        tallies = [attempt.tally for attempt in self.attempts]
        rows = list(self._rows())
        return pd.DataFrame(
            [
                _row(condition, refusals, broken, tally)
                for (condition, refusals, broken), tally in zip_longest(rows, tallies)
            ]
        )

    def categories(self) -> pd.DataFrame:
        """One row a condition and category of the prompts: the share ``refused`` with its 95 % interval, of ``n``.

        None without categories. What the answers are otherwise is not known of the worst suffix of each prompt.
        """
        kinds = self.attempts[0].completions.prompts.categories
        found = []
        for (condition, refused, _), attempt in zip_longest(self._rows(), self.attempts):
            known = {} if attempt is None else attempt.kinds
            found.append((condition, {"malicious": refused_by_category(refused, kinds, known)}))
        return category_frame(found)

    def compare(self, after: Pressure) -> pd.DataFrame:
        """Attack success before (this) and after an intervention, and its paired change with a 95 % interval.

        Raises:
            ValueError: if the two did not ask the same prompts under the same conditions.
        """
        import pandas as pd

        mine, theirs = list(self._rows()), list(after._rows())
        if [row[0] for row in mine] != [row[0] for row in theirs]:
            raise ValueError("the two were made under different conditions: run both with the same arguments")
        for ours, other in zip(self.attempts, after.attempts, strict=True):
            if ours.completions.prompts.prompts != other.completions.prompts.prompts:
                raise ValueError("the two asked different prompts: run both with the same prompts and suffixes")
        rows = []
        for (condition, before, _), (_, changed, _) in zip(mine, theirs, strict=True):
            change, low, high = paired_difference(~changed, ~before)
            rates = {"before": Share.of(~before).rate, "after": Share.of(~changed).rate}
            rows.append({**condition, **rates, "change": change, "change_low": low, "change_high": high})
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """Refusal rates with intervals, by system prompt: ``refusal`` by prefilled tokens, and of ``any_suffix``."""
        systems = list(dict.fromkeys(attempt.condition.system for attempt in self.attempts))
        return {
            "refusal": [
                {"system": of.system, "prefilled": of.prefilled, **_rate(attempt.refused), **attempt.record()}
                for attempt in self.attempts
                if (of := attempt.condition).suffix is None
            ],
            "any_suffix": [
                {"system": system, **_rate(self.any_suffix(system=system))} for system in systems if self.suffixes
            ],
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Refusal rate against the number of prefilled tokens; suffixes beside it."""
        from safecircuits.plots.pressure import plot_pressure

        return plot_pressure(self, ax=ax)

    def __str__(self) -> str:
        return "\n".join(
            f"{attempt.condition}: attack success {attempt.success}" + (f" ({attempt.tally})" if attempt.tally else "")
            for attempt in self.attempts
        )

    def _rows(self) -> Iterator[tuple[dict[str, Any], Bool[Tensor, " prompt"], float]]:
        for attempt in self.attempts:
            c = attempt.condition
            broken = sum(map(degenerate, attempt.completions.texts)) / len(attempt.completions)
            yield {"system": c.system, "prefilled": c.prefilled, "suffix": c.suffix}, attempt.refused, broken
        if len(self.suffixes) > 1:
            for system in dict.fromkeys(a.condition.system for a in self.attempts):
                worst = {"system": system, "prefilled": 0, "suffix": "any"}
                yield worst, self.any_suffix(system=system), float("nan")


def _rate(refused: Bool[Tensor, " prompt"]) -> dict[str, Any]:
    share = Share.of(refused)
    return {"rate": share.rate, "interval": list(share.interval)}


def _row(
    condition: dict[str, Any], refusals: Bool[Tensor, " prompt"], broken: float, tally: Tally | None
) -> dict[str, Any]:
    success = Share.of(~refusals)
    low, high = success.interval
    rates = {"attack_success": success.rate, "success_low": low, "success_high": high, "degenerate": broken}
    return {**condition, "refused": int(refusals.sum()), "n": success.n, **rates, **counts_beside(tally)}
