"""Safety and utility of a model in three numbers, as they were measured: refused, over-rejected, answered right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.counted import ANSWERS_OF
from safecircuits.base.stats import Share
from safecircuits.behavior.categories import category_frame
from safecircuits.behavior.divergence import TokenKL
from safecircuits.behavior.verdict_table import Tally, Verdicts, counts_beside
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Behavior(Result):
    """What ``evaluate`` found: which prompts were refused (``malicious``, ``over_rejection``) or right (``utility``).

    Examples:
        >>> measured = sc.evaluate(model, malicious=malicious, utility=utility)
        >>> measured.rates["malicious_refused"]
        1.0
        >>> measured.malicious.shape
        torch.Size([8])
    """

    malicious: Bool[Tensor, " prompt"] | None
    over_rejection: Bool[Tensor, " prompt"] | None
    utility: Bool[Tensor, " prompt"] | None
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """By set that was judged for refusal (``malicious``, ``over_rejection``): what its completions are."""
    by_category: Mapping[str, Mapping[str, Tally]] = field(default_factory=dict)
    """The same by set and category of its prompts, for sets that have categories."""
    kl: Mapping[str, TokenKL] = field(default_factory=dict)
    """How far the next tokens are from the intact model's on ``malicious`` and ``harmless`` prompts, where a change of
    a model was measured against it."""
    answers: Mapping[str, Verdicts] = field(default_factory=dict)
    """By set: the completions that were judged, with what decided each; of ``utility`` whether it is right."""

    @property
    def counted(self) -> dict[str, Bool[Tensor, " prompt"]]:
        """Which prompts count in ``malicious_refused``, ``over_rejected`` and ``utility``, those that were measured."""
        named = {
            "malicious_refused": self.malicious,
            "over_rejected": self.over_rejection,
            "utility": self.utility,
        }
        return {name: verdicts for name, verdicts in named.items() if verdicts is not None}

    @property
    def shares(self) -> dict[str, Share]:
        """The same as shares with intervals."""
        return {name: Share.of(verdicts) for name, verdicts in self.counted.items()}

    @property
    def rates(self) -> dict[str, float]:
        """The same as plain numbers between 0 and 1."""
        return {name: share.rate for name, share in self.shares.items()}

    @property
    def figures(self) -> dict[str, float]:
        """The rates, and beside those of refusals ``<set>_n``, ``_incoherent``, ``_cut``, … (``Tally.record``)."""
        found: dict[str, float] = dict(self.rates)
        for of, tally in self.tallies.items():
            found |= tally.record(of)
        return found

    @property
    def answer_names(self) -> dict[str, str]:
        """``<set>_answers``: by what name a report has the answers of each set (``Verdicts.digest``)."""
        return {f"{of}_answers": found.digest for of, found in self.answers.items()}

    @property
    def kl_means(self) -> dict[str, float]:
        """Mean KL to the intact model in nats: ``malicious_first_token_kl``, ``harmless_per_token_kl`` and so on."""
        return {f"{of}_{name}": means[0] for of, one in self.kl.items() for name, means in one.means.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row a rate that was measured: ``rate`` with its 95 % interval ``low``, ``high``, ``hits`` of ``n``.

        Refusals have beside them how many completions ``deflects``, are ``incoherent`` or ``undecided``, and how many
        the limit of tokens ``cut``; sets with categories have a row for each, too.
        """
        import pandas as pd

        rows = []
        for name, share in self.shares.items():
            of = ANSWERS_OF[name]
            answers = self.answer_names.get(f"{of}_answers")
            rows.append({"what": name, "category": "all", **_row(share, self.tallies.get(of)), "answers": answers})
            for category, tally in self.by_category.get(of, {}).items():
                rows.append({"what": name, "category": category, **_row(tally.share("refuses"), tally)})
        return pd.DataFrame(rows)

    def categories(self) -> pd.DataFrame:
        """One row a set and category of its prompts (``category_frame``); none without categories."""
        return category_frame([({}, self.by_category)])

    def record(self) -> dict[str, Any]:
        """Rates by name, each with its ``<name>_interval``; of each set ``Tally.record``, and rates by category.

        With ``answer_names``, by which a report leads to the answers that are counted.
        """
        shares = self.shares
        named: dict[str, Any] = {name: share.rate for name, share in shares.items()}
        named |= {f"{name}_interval": list(share.interval) for name, share in shares.items()}
        named = self.figures | named | self.answer_names
        for of, one in self.kl.items():
            named |= {f"{of}_{name}": value for name, value in one.record().items() if name != "by_position"}
        if self.by_category:
            named["by_category"] = {
                of: {
                    category: {"refused": tally.share("refuses").rate, **tally.record("all")}
                    for category, tally in tallies.items()
                }
                for of, tallies in self.by_category.items()
            }
        return named

    def plot(self, ax: Axes | None = None) -> Axes:
        """Each rate with its 95 % interval; ``rate_figures.plot_behavior`` puts several models into one figure."""
        from safecircuits.plots.rates import plot_behavior

        return plot_behavior(self, ax=ax)

    def __str__(self) -> str:
        said = []
        for name, share in self.shares.items():
            tally = self.tallies.get(ANSWERS_OF[name])
            said.append(f"{name.replace('_', ' ')} {share}" + (f" ({tally})" if tally else ""))
        said += [f"{of}: {one}" for of, one in self.kl.items()]
        return ", ".join(said)


def _row(share: Share, tally: Tally | None) -> dict[str, Any]:
    low, high = share.interval
    row: dict[str, Any] = {"rate": share.rate, "low": low, "high": high, "hits": share.hits, "n": share.n}
    return row | counts_beside(tally)
