"""Patching curves: how many prompts are refused with more and more units patched, beside as many random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.resamples import DRAWS, multiplicities
from safecircuits.base.stats import Share, canonical_order, interval_of_rate
from safecircuits.behavior.categories import category_frame
from safecircuits.behavior.divergence import TokenKL
from safecircuits.behavior.verdict_table import Tally
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


Direction = Literal["sufficient", "necessary"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

Chosen = Literal["found", "random", "same layers"]
CONTROLS: tuple[Chosen, ...] = ("random", "same layers")

Scale = Literal["share", "log"]


@dataclass(frozen=True)
class PatchingCurve:
    """What is refused with more and more units patched: those found, or a draw of a control."""

    direction: Direction
    chosen: Chosen
    draw: int
    refused: Bool[Tensor, "count prompt"]
    tallies: tuple[Tally, ...] = ()
    """By count: what the answers are, which end where their verdict is certain; empty in files of earlier versions."""
    kinds: tuple[Mapping[str, Tally], ...] = ()
    """The same by category of the prompts."""
    kl: tuple[Mapping[str, TokenKL], ...] = ()
    """By count, and kind of prompts (``malicious``, ``harmless``): how far the patched model is from itself without."""

    def kl_means(self, place: int) -> dict[str, float]:
        """Of the count at a place: ``malicious_first_token_kl`` and so on, in nats; empty where it was not measured."""
        found = self.kl[place] if self.kl else {}
        return {f"{of}_{name}": mean for of, one in found.items() for name, (mean, _, _) in one.means.items()}


@dataclass(frozen=True)
class PatchingCurves(Result):
    """Refusals of a base and an aligned model, and of each with more and more units of the other.

    Examples:
        >>> base = sc.load_model("base")
        >>> scores = sc.units.change_scores(base, model, malicious)
        >>> curves = sc.units.patching_curves(base, model, scores, malicious, counts=[64, 3136], controls=1)
        >>> 0 <= curves.cmd("sufficient") <= 1
        True
    """

    counts: tuple[int, ...]
    n_units: int
    """All that could be patched: of the sites that were scored."""
    base: Bool[Tensor, " prompt"]
    aligned: Bool[Tensor, " prompt"]
    """What either refuses as it is."""
    curves: tuple[PatchingCurve, ...]
    provenance: dict[str, Any]

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Those that were measured."""
        return tuple(dict.fromkeys(curve.direction for curve in self.curves))

    def rates(self, direction: Direction, chosen: Chosen = "found") -> Float[Tensor, " count"]:
        """The refusal rate at each count; of a control the mean over its draws.

        Raises:
            ValueError: for a direction or a control that was not measured.
        """
        return self._refused(direction, chosen).mean(1)

    def faithfulness(self, direction: Direction, chosen: Chosen = "found") -> Float[Tensor, " count"]:
        """The share of the refusal between the two models that is carried over, at each count."""
        return self._faithful(direction, chosen, self._once)[0]

    def cpr(self, direction: Direction, chosen: Chosen = "found", *, scale: Scale = "share") -> float:
        """MIB's CPR: the mean of the faithfulness over the share of units patched, from none to the largest count.

        Args:
            scale: ``"share"``, the definition, which is nearly all about counts that no circuit has; ``"log"``: over
                the logarithm of the count, from the smallest on, divided by the range. MIB's code takes that integral
                and does not divide.
        """
        return float(self._area(self._faithful(direction, chosen, self._once), scale))

    def cmd(self, direction: Direction, chosen: Chosen = "found", *, scale: Scale = "share") -> float:
        """MIB's CMD: the mean distance of the faithfulness from 1; what overshoots counts as what falls short."""
        return float(self._area((1 - self._faithful(direction, chosen, self._once)).abs(), scale, at_none=1.0))

    def above(
        self, direction: Direction, control: Chosen = "same layers", *, scale: Scale = "log"
    ) -> tuple[float, float, float]:
        """The area between the curve and a control's: the difference of their CPRs, and its 95 % bootstrap interval.

        Prompts are resampled; that there are other draws of the control is not in the interval.
        """
        order = canonical_order(torch.stack([row for c in self.curves for row in c.refused.int()]).T.tolist())
        draws = multiplicities(len(order), DRAWS, torch.Generator().manual_seed(0)).double() / len(order)
        weights = torch.zeros_like(draws).index_copy(1, torch.tensor(order), draws)

        def difference(weights: Tensor) -> Tensor:
            found, theirs = (self._faithful(direction, which, weights) for which in ("found", control))
            return self._area(found, scale) - self._area(theirs, scale)

        drawn = difference(weights)
        drawn = drawn[torch.isfinite(drawn)]  # not the resamples in which the two models refuse alike
        low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
        return float(difference(self._once)), low, high

    def kl(self, direction: Direction, chosen: Chosen = "found") -> list[dict[str, float]]:
        """At each count, how far the patched model is from itself without: nats by name; of a control means over draws.

        Examples:
            >>> base = sc.load_model("base")
            >>> units = {24: sc.units.change_scores(base, model, malicious).top(24)}
            >>> curves = sc.units.patching_curves(base, model, units, malicious, harmless=normal, controls=1)
            >>> sorted(curves.kl("sufficient")[0])[:2]
            ['harmless_first_token_kl', 'harmless_per_token_kl']
        """
        drawn = [c for c in self.curves if (c.direction, c.chosen) == (direction, chosen) and c.kl]
        each = [[c.kl_means(place) for c in drawn] for place in range(len(self.counts))] if drawn else []
        return [{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} for rows in each]

    def half(self, direction: Direction, chosen: Chosen = "found") -> int | None:
        """The smallest count that carries half of the refusal; None if none does."""
        carried = self.faithfulness(direction, chosen) > 0.5 - 1e-9  # of rates, which are rounded
        enough = carried.nonzero().flatten().tolist()
        return self.counts[enough[0]] if enough else None

    @property
    def verdict(self) -> str:
        """A line a direction."""
        lines = [f"refused: {Share.of(self.base)} by the base, {Share.of(self.aligned)} by the aligned model"]
        for direction in self.directions:
            patched = "base with the aligned model's units" if direction == "sufficient" else "aligned with the base's"
            half, far = self.half(direction), self.kl(direction)
            carried = (
                "no count carries half" if half is None else f"{half} units ({half / self.n_units:.2%}) carry half"
            )
            line = f"{direction} ({patched}): {carried} of the refusal"
            if half is not None and far:
                place = self.counts.index(half)
                named = [f"{far[place][f'{of}_first_token_kl']:.2g} on {of} prompts" for of in self._kinds(far[place])]
                line += f", with a first-token KL to the unpatched model of {' and '.join(named)}"
            line += f"; CPR {self.cpr(direction):.2f}, CMD {self.cmd(direction):.2f}"
            if any(c.chosen == "same layers" for c in self.curves):
                area, low, high = self.above(direction)
                line += f"; {area:+.2f} [{low:+.2f}, {high:+.2f}] against units of the same layers, on a log scale"
            lines.append(line)
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """One row a direction, kind of units, draw and count: ``refused``, its interval, and the ``faithfulness``.

        Beside it ``n``, how many answers are ``incoherent``, and how far the patched model is from itself without
        (``malicious_first_token_kl``, ``harmless_per_token_kl`` and so on, in nats), where that was measured.
        """
        import pandas as pd

        rows = []
        for curve in self.curves:
            f = _faithfulness(curve.refused.double().mean(1), *self._ends(curve.direction, self._once))
            for i, count in enumerate(self.counts):
                share = Share.of(curve.refused[i])
                low, high = share.interval
                what = {"direction": curve.direction, "units": curve.chosen, "draw": curve.draw, "count": count}
                rates = {"refused": share.rate, "low": low, "high": high, "faithfulness": float(f[i])}
                strange = curve.tallies[i].incoherent if curve.tallies else None
                beside = {"n": share.n, "incoherent": strange, **curve.kl_means(i)}
                rows.append({**what, "share": count / self.n_units, **rates, **beside})
        return pd.DataFrame(rows)

    def categories(self) -> pd.DataFrame:
        """One row a direction, kind of units, draw, count and category of the prompts; none without categories."""
        rows = [
            (
                {"direction": curve.direction, "units": curve.chosen, "draw": curve.draw, "count": count},
                {"malicious": kinds},
            )
            for curve in self.curves
            for count, kinds in zip(self.counts, curve.kinds, strict=False)
        ]
        return category_frame(rows, ["direction", "units", "draw", "count"])

    def record(self) -> dict[str, Any]:
        """``counts``, what ``base`` and ``aligned`` refuse, and by direction and kind of units ``rates`` and areas."""
        found: dict[str, Any] = {}
        for direction in self.directions:
            kinds = dict.fromkeys(c.chosen for c in self.curves if c.direction == direction)
            found[direction] = {
                kind: {
                    "rates": self.rates(direction, kind).tolist(),
                    "intervals": [
                        list(interval_of_rate(rate, len(self.base))) for rate in self.rates(direction, kind).tolist()
                    ],
                    "cpr": self.cpr(direction, kind),
                    "cmd": self.cmd(direction, kind),
                    "half": self.half(direction, kind),
                    "kl": self.kl(direction, kind),
                    **({} if kind == "found" else {"above": list(self.above(direction, kind))}),
                }
                for kind in kinds
            }
        ends = {"base": Share.of(self.base).rate, "aligned": Share.of(self.aligned).rate}
        return {"counts": list(self.counts), "n_units": self.n_units, **ends, "curves": found}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Refusal rate against the number of patched units, both ways, with the controls."""
        from safecircuits.plots.interchange import plot_patching

        return plot_patching(self, ax=ax)

    @staticmethod
    def _kinds(means: Mapping[str, float]) -> list[str]:
        return [name.removesuffix("_first_token_kl") for name in means if name.endswith("_first_token_kl")]

    @property
    def _once(self) -> Float[Tensor, "1 prompt"]:
        n = len(self.base)
        return torch.full((1, n), 1 / n, dtype=torch.float64)

    def _refused(self, direction: Direction, chosen: Chosen) -> Float[Tensor, "count prompt"]:
        rows = [c.refused.double() for c in self.curves if (c.direction, c.chosen) == (direction, chosen)]
        if not rows:
            there = ", ".join(dict.fromkeys(f"{c.direction}: {c.chosen}" for c in self.curves))
            raise ValueError(f"there is no curve {direction!r} of {chosen!r} units; there are {there}")
        return torch.stack(rows).mean(0)

    def _ends(self, direction: Direction, weights: Tensor) -> tuple[Tensor, Tensor]:
        base, aligned = (weights @ refused.double() for refused in (self.base, self.aligned))
        return (base, aligned) if direction == "sufficient" else (aligned, base)

    def _faithful(self, direction: Direction, chosen: Chosen, weights: Tensor) -> Float[Tensor, "draw count"]:
        rates = weights @ self._refused(direction, chosen).T
        none, every = self._ends(direction, weights)
        return _faithfulness(rates, none[:, None], every[:, None])

    def _area(self, curve: Float[Tensor, "draw count"], scale: Scale, at_none: float = 0.0) -> Float[Tensor, " draw"]:
        if scale not in get_args(Scale):
            raise ValueError(f"scale is 'share' or 'log', not {scale!r}")
        x = torch.tensor(self.counts, dtype=torch.float64)
        if scale == "log":
            if len(x) == 1:
                return curve[:, 0]
            x = x.log()
        else:
            x, curve = torch.cat([x.new_zeros(1), x]), torch.cat([torch.full_like(curve[:, :1], at_none), curve], dim=1)
        return torch.trapezoid(curve, x) / (x[-1] - x[0])


def _faithfulness(rates: Tensor, none: Tensor, every: Tensor) -> Tensor:
    return (rates - none) / (every - none)
