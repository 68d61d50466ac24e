"""Where units went in training: classified before and after, cross-tabulated unit by unit (SSAH §4.2, Figures 5 and 6).

Both classifications use the same data and shares, so that group sizes stay and only membership moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import Site
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.units.groups import GROUPS, Group, Normalisation, ShareOf, UnitGroups, classify_units
from safecircuits.units.importance import score_units

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

THRESHOLD = 0.001
"""Flows below this share of all units are not drawn, as in the paper."""


class Flow(NamedTuple):
    """Units that were in ``before`` and are in ``after``, and their share of all units.

    Examples:
        >>> base = sc.load_model("base")
        >>> found = sc.units.attribute_transfer(base, model, malicious, utility, scu=0.01, ucu=0.1, ru=0.1)
        >>> drawn, rest = found.flows(threshold=0.01)
        >>> flow = drawn[0]
        >>> flow.before in sc.units.GROUPS, 0 < flow.share < 1
        (True, True)
    """

    before: Group
    after: Group
    units: int
    share: float


@dataclass(frozen=True)
class AttributeTransfer(Result):
    """How many units of each group went to which, in all and by site; rows are before, columns after (``GROUPS``).

    Examples:
        >>> base = sc.load_model("base")
        >>> found = sc.units.attribute_transfer(base, model, malicious, utility, scu=0.01, ucu=0.1, ru=0.1)
        >>> found.counts.shape, found.n_units
        (torch.Size([4, 4]), 3136)
    """

    counts: Int[Tensor, "before after"]
    by_site: Mapping[Site, Int[Tensor, "before after"]]
    provenance: dict[str, Any]

    @property
    def n_units(self) -> int:
        return int(self.counts.sum())

    @property
    def matrix(self) -> Float[Tensor, "before after"]:
        """Of each group before, the share that is in each group after: rows sum to one, NaN for an empty group."""
        counts = self.counts.double()
        return counts / counts.sum(1, keepdim=True)

    @property
    def shares(self) -> Float[Tensor, "before after"]:
        """The same as shares of all units, as the paper prints them: all entries sum to one."""
        return self.counts.double() / self.n_units

    @property
    def chance(self) -> Float[Tensor, "before after"]:
        """The shares of all units that groups of these sizes would exchange if membership were drawn anew."""
        shares = self.shares
        return torch.outer(shares.sum(1), shares.sum(0))

    @property
    def totals(self) -> dict[str, dict[str, float]]:
        """Share of all units in each group, ``before`` and ``after``."""
        sides = {"before": self.shares.sum(1), "after": self.shares.sum(0)}
        return {side: dict(zip(GROUPS, values.tolist(), strict=True)) for side, values in sides.items()}

    def flows(self, threshold: float = THRESHOLD) -> tuple[tuple[Flow, ...], tuple[Flow, ...]]:
        """Those of at least ``threshold`` of all units, and those below it that are not empty."""
        found = tuple(self._flows())
        return tuple(f for f in found if f.share >= threshold), tuple(f for f in found if f.share < threshold)

    def to_frame(self, threshold: float = THRESHOLD) -> pd.DataFrame:
        """One row a flow, the empty ones included; ``drawn`` says whether it reaches the threshold."""
        import pandas as pd

        rows = [
            {
                "before": before,
                "after": after,
                "units": int(self.counts[i, j]),
                "share_of_group": float(self.matrix[i, j]),
                "share_of_all": float(self.shares[i, j]),
                "chance": float(self.chance[i, j]),
                "drawn": bool(self.counts[i, j] and self.shares[i, j] >= threshold),
                **{f"units_{site}": int(counts[i, j]) for site, counts in self.by_site.items()},
            }
            for i, before in enumerate(GROUPS)
            for j, after in enumerate(GROUPS)
        ]
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """``totals``: share of all units in each group before and after; and the ``flows`` that are not empty."""
        return {"totals": self.totals, "flows": [flow._asdict() for flow in self._flows()]}

    def plot(self, ax: Axes | None = None, *, threshold: float = THRESHOLD) -> Axes:
        """Groups before and after as bars, flows as bands between them."""
        from safecircuits.plots.transfer import plot_transfer

        return plot_transfer(self, threshold=threshold, ax=ax)

    def __str__(self) -> str:
        lines = []
        for i, group in enumerate(GROUPS):
            if n := int(self.counts[i].sum()):
                went = ", ".join(
                    f"{100 * float(self.matrix[i, j]):.1f} % {after}"
                    for j, after in enumerate(GROUPS)
                    if self.counts[i, j]
                )
                lines.append(f"{n} {group} before: after {went}")
        return "\n".join(lines)

    def _flows(self) -> Iterator[Flow]:
        for i, before in enumerate(GROUPS):
            for j, after in enumerate(GROUPS):
                if units := int(self.counts[i, j]):
                    yield Flow(before, after, units, units / self.n_units)


def transfer_of(before: UnitGroups, after: UnitGroups) -> AttributeTransfer:
    """The transfer between two classifications of models of one shape, however they were made.

    A base model that knows no safety, for instance, has UCU and RU alone in the paper's Figure 6: what is not redundant
    in it (``classify_units`` with ``scu=0`` and ``ucu=0``) counts as UCU.

    Raises:
        ValueError: if the two are of models of different shape, or of different sites.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> before, after = (sc.classify_units(safety, answers, scu=share, ucu=0.1, ru=0.1) for share in (0.01, 0.02))
        >>> found = sc.units.transfer_of(before, after)
        >>> found.n_units
        3136
    """
    after.shape.require_same(before.shape, "the second classification")
    if set(before.sites) != set(after.sites):
        raise ValueError(
            f"the classifications are of the sites {sorted(before.sites)} and {sorted(after.sites)}: score the same"
        )
    was, is_now = ([groups[name] for name in GROUPS] for groups in (before, after))
    moved = [[a & b for b in is_now] for a in was]
    by_site = {site: torch.tensor([[units.n_units(site) for units in row] for row in moved]) for site in before.sites}
    counts = torch.stack(list(by_site.values())).sum(0)
    return AttributeTransfer(counts, by_site, {"before": before.provenance, "after": after.provenance})


@checked
def attribute_transfer(
    before: HookedModel,
    after: HookedModel,
    safety: PromptSet,
    utility: PromptSet,
    *,
    scu: float,
    ucu: float,
    ru: float,
    normalize: Normalisation = "none",
    share_of: ShareOf = "units",
    **options: Any,
) -> AttributeTransfer:
    """Classify the units of a model before and after training with the same data and shares, and cross-tabulate them.

    Args:
        safety, utility: prompts with responses; see ``score_units``.
        scu, ucu, ru, normalize, share_of: as in ``classify_units``.
        options: as in ``score_units``: ``method``, ``tokens``, …

    Examples:
        >>> base = sc.load_model("base")
        >>> found = sc.units.attribute_transfer(base, model, malicious, utility, scu=0.01, ucu=0.1, ru=0.1)
        >>> round(sum(found.shares.flatten().tolist()), 2)
        1.0
    """
    groups = []
    for model in (before, after):
        scores = [score_units(model, data, **options) for data in (safety, utility)]
        groups.append(classify_units(*scores, scu=scu, ucu=ucu, ru=ru, normalize=normalize, share_of=share_of))
    return transfer_of(*groups)
