"""What a change of a model did to its behavior: rates of the same prompts before and after, by exact paired tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.counted import ANSWERS_OF
from safecircuits.base.grouping import rows_by
from safecircuits.base.one_sided import holm
from safecircuits.base.paired import paired_difference, paired_p
from safecircuits.base.stats import Share
from safecircuits.base.text import points
from safecircuits.behavior.divergence import KL_NAMES, harmless_of
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.verdict_table import Tally, counts_beside
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


_ENDS = ("", "_low", "_high")


@dataclass(frozen=True)
class RateChange:
    """One rate before and after, of the same prompts.

    Attributes:
        what: ``malicious_refused``, ``over_rejected`` or ``utility``.
        category: of the prompts; ``"all"`` for all of them.
        before, after: the two counts.
        change: after minus before, with its exact 95 % interval ``low`` to ``high`` (``paired_difference``).
        p: two-sided, of McNemar's exact test; ``p_corrected`` by Holm for the number of categories of a rate.
        tallies: what the answers are, before and after; None of a rate that counts no refusals.

    Examples:
        >>> measured = sc.evaluate(model, malicious=malicious)
        >>> same = sc.behavior.BehaviorChange(measured, measured).changes[0]
        >>> same.change, same.p, same.before == same.after
        (0.0, 1.0, True)
    """

    what: str
    category: str
    before: Share
    after: Share
    change: float
    low: float
    high: float
    p: float
    p_corrected: float
    tallies: tuple[Tally, Tally] | None

    @property
    def name(self) -> str:
        """``malicious refused``, and the category after a colon."""
        return self.what.replace("_", " ") + ("" if self.category == "all" else f": {self.category}")

    @property
    def difference(self) -> str:
        """Of eight prompts that all stay: ``+0.0 [−36.8, +36.8] points, p = 1 (McNemar's exact test)``."""
        return f"{points(self.change, self.low, self.high)} points, p = {self.p:.2g} (McNemar's exact test)"

    def row(self) -> dict[str, Any]:
        """As a row of a table: rates between 0 and 1, what else the answers are in numbers of completions."""
        found: dict[str, Any] = {"what": self.what, "category": self.category, "n": self.after.n}
        for name, share in (("before", self.before), ("after", self.after)):
            low, high = share.interval
            found |= {name: share.rate, f"{name}_low": low, f"{name}_high": high}
        found |= {"change": self.change, "change_low": self.low, "change_high": self.high}
        found |= {"p": self.p, "p_corrected": self.p_corrected}
        for name, tally in zip(("before", "after"), self.tallies or (None, None), strict=True):
            found |= {f"{name}_{kind}": count for kind, count in counts_beside(tally).items()}
        return found

    def __str__(self) -> str:
        beside = ("", "") if self.tallies is None else tuple(f" ({tally})" for tally in self.tallies)
        return f"{self.name}: {self.before} before{beside[0]}, {self.after} after{beside[1]}; {self.difference}"


@dataclass(frozen=True)
class BehaviorChange(Result):
    """A model's behavior before and after something was done to it, measured on the same prompts.

    Raises:
        ValueError: if the two measured different rates or asked other prompts.

    Examples:
        >>> sets = {"malicious": malicious, "over_rejection": over_rejection}
        >>> after = sc.evaluate(sc.load_model("unaligned"), **sets)
        >>> found = sc.behavior.BehaviorChange(sc.evaluate(model, **sets), after)
        >>> found.to_frame()[["what", "before", "after", "change"]].round(2).values.tolist()
        [['malicious_refused', 1.0, 0.0, -1.0], ['over_rejected', 0.38, 0.0, -0.38]]
    """

    before: Behavior
    after: Behavior

    def __post_init__(self) -> None:
        names = [list(one.counted) for one in (self.before, self.after)]
        if names[0] != names[1]:
            raise ValueError(f"before {_named(names[0])} was measured, and after {_named(names[1])}: measure the same")
        for name, verdicts in self.before.counted.items():
            ours, theirs = (one.answers.get(ANSWERS_OF[name]) for one in (self.before, self.after))
            if len(verdicts) != len(self.after.counted[name]) or (
                ours is not None and theirs is not None and ours.ids != theirs.ids
            ):
                raise ValueError(f"{name} was measured on other prompts before than after: ask the same, in one order")

    @property
    def changes(self) -> tuple[RateChange, ...]:
        """Each rate, of all prompts."""
        return tuple(
            _change(name, "all", (verdicts, self.after.counted[name]), self._tallies(name))
            for name, verdicts in self.before.counted.items()
        )

    @property
    def changes_by_category(self) -> tuple[RateChange, ...]:
        """Rates of refusal by category of the prompts, in the order in which these first occur."""
        return tuple(one for name in self.before.counted for one in self._of_categories(name))

    def to_frame(self) -> pd.DataFrame:
        """One row a rate: both with 95 % intervals, the ``change`` with its exact one, ``p``, and what answers are.

        ``before_incoherent``, ``after_cut`` and so on are numbers of completions, of ``n``. Where the distance to the
        model before was measured (``Behavior.kl`` of ``after``), it stands beside the rate of the same prompts:
        ``first_token_kl`` and ``per_token_kl`` with their intervals, in nats.
        """
        import pandas as pd

        return pd.DataFrame([one.row() | self._far(one.what) for one in self.changes])

    def categories(self) -> pd.DataFrame:
        """The same by category of prompts; empty without categories."""
        import pandas as pd

        return pd.DataFrame([one.row() for one in self.changes_by_category])

    def record(self) -> dict[str, Any]:
        """Both behaviors, and of each rate its change."""
        changes = {
            one.what: {"change": one.change, "interval": [one.low, one.high], "p": one.p} for one in self.changes
        }
        return {"before": self.before.record(), "after": self.after.record(), "changes": changes}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Each rate before and after, with 95 % intervals."""
        from safecircuits.plots.rates import plot_behavior

        return plot_behavior({"before": self.before, "after": self.after}, ax=ax)

    def __str__(self) -> str:
        far = (f"{of} prompts: {one}" for of, one in self.after.kl.items())
        return "\n".join([*map(str, self.changes), *far])

    def _far(self, what: str) -> dict[str, float]:
        """The KL on the prompts of a rate, as columns; NaN on those where it was not measured."""
        kinds = {"malicious": "malicious", harmless_of(vars(self.after)): "harmless"}
        found = self.after.kl.get(kinds.get(ANSWERS_OF[what], ""))
        means = dict.fromkeys(KL_NAMES, (math.nan,) * 3) if found is None else found.means
        columns = {f"{name}{end}": values[i] for name, values in means.items() for i, end in enumerate(_ENDS)}
        return columns if self.after.kl else {}

    def _tallies(self, name: str) -> tuple[Tally, Tally] | None:
        ours, theirs = (one.tallies.get(ANSWERS_OF[name]) for one in (self.before, self.after))
        return None if ours is None or theirs is None else (ours, theirs)

    def _of_categories(self, name: str) -> Iterator[RateChange]:
        of = ANSWERS_OF[name]
        kinds = None if of not in self.before.answers else self.before.answers[of].categories
        ours, theirs = (one.by_category.get(of, {}) for one in (self.before, self.after))
        verdicts = self.before.counted[name], self.after.counted[name]
        rows = {kind: those for kind, those in rows_by(kinds).items() if kind in ours}
        pairs = {kind: (verdicts[0][those], verdicts[1][those]) for kind, those in rows.items()}
        corrected = holm([paired_p(*pair) for pair in pairs.values()])
        for (kind, pair), p in zip(pairs.items(), corrected, strict=True):
            yield _change(name, kind, pair, (ours[kind], theirs[kind]), p)


def _change(
    what: str,
    category: str,
    verdicts: tuple[Bool[Tensor, " prompt"], Bool[Tensor, " prompt"]],
    tallies: tuple[Tally, Tally] | None,
    p_corrected: float | None = None,
) -> RateChange:
    before, after = verdicts
    change, low, high = paired_difference(after, before)
    p = paired_p(after, before)
    shares = Share.of(before), Share.of(after)
    return RateChange(what, category, *shares, change, low, high, p, p if p_corrected is None else p_corrected, tallies)


def _named(rates: Sequence[str]) -> str:
    return " and ".join(rates) or "nothing"
