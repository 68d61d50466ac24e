"""Where units, layers and the direction meet: do the groups of SSAH, safety layers and a direction's writers coincide?

Each pair of sets of units is compared with what chance has: one set drawn anew among all units, the other as it is.
Their common part is then hypergeometric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.sites import ModelShape
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class SetPair:
    """Two sets of units, and how many they share: ``expected`` by chance, 95 % of draws from ``low`` to ``high``."""

    a: str
    b: str
    n_a: int
    n_b: int
    both: int
    expected: float
    low: int
    high: int
    p: float
    """Of as many or more by chance."""

    @property
    def over_chance(self) -> float:
        """Common units over the expected number."""
        return self.both / self.expected


@dataclass(frozen=True)
class ObjectOverlap(Result):
    """Every pair of named sets of units against chance.

    Examples:
        >>> shape = sc.ModelShape.of(model)
        >>> units = sc.score_units(model, malicious).top(24)
        >>> found = sc.units.object_overlap({"top": units, "layers": sc.FreezeMask.layers((3, 5), shape)}, shape)
        >>> found.pairs[0].n_a
        24
    """

    pairs: tuple[SetPair, ...]
    n_units: int
    provenance: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a pair."""
        import pandas as pd

        return pd.DataFrame([{**vars(pair), "over_chance": pair.over_chance} for pair in self.pairs])

    def record(self) -> dict[str, Any]:
        """The ``pairs`` with their common units, what chance has of them, and p."""
        return {"n_units": self.n_units, "pairs": [{**vars(p), "over_chance": p.over_chance} for p in self.pairs]}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Common units of each pair, and the interval of chance."""
        from safecircuits.plots.overlap import plot_object_overlap

        return plot_object_overlap(self, ax=ax)


def object_overlap(sets: Mapping[str, FreezeMask], model: Any) -> ObjectOverlap:
    """Compare sets of units of one model pair by pair: SCU, safety layers (``FreezeMask.layers``), top writers.

    Args:
        sets: by name, such as ``{"SCU": groups["SCU"], "safety layers": FreezeMask.layers((3, 5), model), "writers":
            writers.top(64)}``.
        model: whose units they are, or its ``ModelShape``.

    Raises:
        ValueError: for fewer than two sets, an empty one, and another model's.

    Examples:
        >>> units = sc.score_units(model, malicious).top(24)
        >>> found = sc.units.object_overlap({"top": units, "layers": sc.FreezeMask.layers((3, 5), model)}, model)
        >>> found.to_frame().columns.tolist()[:5]
        ['a', 'b', 'n_a', 'n_b', 'both']
    """
    from scipy.stats import hypergeom

    if len(sets) < 2:
        raise ValueError(f"two sets or more can overlap, not {len(sets)}")
    shape = model if isinstance(model, ModelShape) else ModelShape.of(model)
    masks = {name: units_of(shape, mask, f"the units of {name!r}") for name, mask in sets.items()}
    empty = [name for name, mask in masks.items() if not mask]
    if empty:
        raise ValueError(f"{empty[0]!r} has no units, so there is nothing to overlap with")
    n = shape.total_units
    pairs = []
    for (a, one), (b, two) in combinations(masks.items(), 2):
        n_a, n_b, both = one.n_units(), two.n_units(), (one & two).n_units()
        chance = hypergeom(n, n_a, n_b)
        low, high = (int(chance.ppf(q)) for q in (0.025, 0.975))
        pairs.append(SetPair(a, b, n_a, n_b, both, n_a * n_b / n, low, high, float(chance.sf(both - 1))))
    return ObjectOverlap(tuple(pairs), n, {name: dict(mask.provenance) for name, mask in masks.items()})
