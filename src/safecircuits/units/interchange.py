"""Are these units enough to make a base model refuse, and does an aligned one need them? Patching curves.

Units are patched from the highest down, as many as a curve has counts, while the patched model writes (dynamic
activation patching): the aligned model's into the base (sufficient?), and the base's into the aligned one (necessary?).
Beside them go as many random units, and as many random units of the same layers. What a count of units carries is its
faithfulness

    f(k) = (m(k) − m(0)) / (m(all) − m(0))

with m(0) the refusal rate of the patched model as it is and m(all) that of the other one: Chen et al.'s causal effect
(arXiv 2406.14144, §3.2), and the faithfulness of MIB (Mueller et al., ICML 2025, arXiv 2504.13151). MIB's two summaries
are integrals over the share of units k: CPR = ∫ f(k) dk, higher is better, and CMD = ∫ |1 − f(k)| dk, lower is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.notices import notify
from safecircuits.base.resamples import DRAWS, multiplicities
from safecircuits.base.stats import Share, canonical_order
from safecircuits.base.vocabulary import SITES
from safecircuits.behavior.generate import generate
from safecircuits.behavior.interchange import generate_patched
from safecircuits.behavior.refusal import RefusalDetector, refused
from safecircuits.behavior.stakes import LEAST
from safecircuits.behavior.verdict import tokens_needed
from safecircuits.hooks.lockstep import as_sets
from safecircuits.layers.counting import early_verdict
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.pair import require_pair
from safecircuits.model.sites import HookedModel, ModelShape, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.results.result import Result
from safecircuits.units.scores import UnitScores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Direction = Literal["sufficient", "necessary"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

Chosen = Literal["found", "random", "same layers"]
CONTROLS: tuple[Chosen, ...] = ("random", "same layers")

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of all units: those at which MIB measures."""

Scale = Literal["share", "log"]


@dataclass(frozen=True)
class PatchingCurve:
    """What is refused with more and more units patched: those found, or a draw of a control."""

    direction: Direction
    chosen: Chosen
    draw: int
    refused: Bool[Tensor, "count prompt"]


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
            half = self.half(direction)
            carried = (
                "no count carries half" if half is None else f"{half} units ({half / self.n_units:.2%}) carry half"
            )
            line = f"{direction} ({patched}): {carried} of the refusal"
            line += f"; CPR {self.cpr(direction):.2f}, CMD {self.cmd(direction):.2f}"
            if any(c.chosen == "same layers" for c in self.curves):
                area, low, high = self.above(direction)
                line += f"; {area:+.2f} [{low:+.2f}, {high:+.2f}] against units of the same layers, on a log scale"
            lines.append(line)
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """One row a direction, kind of units, draw and count: ``refused``, its interval, and the ``faithfulness``."""
        import pandas as pd

        rows = []
        for curve in self.curves:
            f = _faithfulness(curve.refused.double().mean(1), *self._ends(curve.direction, self._once))
            for i, count in enumerate(self.counts):
                share = Share.of(curve.refused[i])
                low, high = share.interval
                what = {"direction": curve.direction, "units": curve.chosen, "draw": curve.draw, "count": count}
                rates = {"refused": share.rate, "low": low, "high": high, "faithfulness": float(f[i])}
                rows.append({**what, "share": count / self.n_units, **rates})
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """``counts``, what ``base`` and ``aligned`` refuse, and by direction and kind of units ``rates`` and areas."""
        found: dict[str, Any] = {}
        for direction in self.directions:
            kinds = dict.fromkeys(c.chosen for c in self.curves if c.direction == direction)
            found[direction] = {
                kind: {
                    "rates": self.rates(direction, kind).tolist(),
                    "cpr": self.cpr(direction, kind),
                    "cmd": self.cmd(direction, kind),
                    "half": self.half(direction, kind),
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


@checked
def patching_curves(
    base: HookedModel,
    aligned: HookedModel,
    units: UnitScores | Mapping[int, FreezeMask],
    malicious: PromptSet | Sequence[str],
    *,
    counts: Sequence[int] | None = None,
    directions: Sequence[Direction] = DIRECTIONS,
    controls: int = 2,
    outgoing: bool = False,
    detector: str | RefusalDetector = "opening",
    max_new_tokens: int | None = None,
    template: str = "auto",
    max_tokens: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PatchingCurves:
    """Patch more and more units between two checkpoints while they write, both ways, and count refusals.

    Args:
        base, aligned: two checkpoints of one architecture, shape and vocabulary. The aligned one's tokenizer and
            template put the prompts to both.
        units: scores, such as those of ``change_scores``, whose highest units are patched; or masks by their number
            of units.
        malicious: should not be what the units were found on.
        counts: how many units are patched, ascending; MIB's shares of all scored units unless given.
        directions: ``"sufficient"``: the aligned model's units in the base; ``"necessary"``: the other way round.
        controls: draws of random units, and as many of random units of the same layers.
        outgoing: patch what units write, by the source's own outgoing weights; see ``generate_patched``. Without it the
            curve need not reach 1 with every unit patched, where training has moved the output projections.
        detector, max_new_tokens: what counts as a refusal; as many tokens as the detector needs unless given. An answer
            ends as soon as its verdict is certain.
        seed: of the first draw of either control.

    Raises:
        ValueError: for two checkpoints that are no pair or of which the aligned one does not refuse more, a single
            prompt, and counts that do not ascend or that there are not units for.

    Examples:
        >>> base = sc.load_model("base")
        >>> scores = sc.units.change_scores(base, model, malicious, method="wchange")
        >>> found = sc.units.patching_curves(base, model, scores, malicious, counts=[64], controls=1, outgoing=True)
        >>> found.directions
        ('sufficient', 'necessary')
    """
    require_pair(base, aligned)
    prompts = as_prompt_set(malicious, "malicious")
    if len(prompts) < 2:
        raise ValueError(f"{prompts.name!r} has one prompt: a refusal rate needs at least two")
    wrong = [one for one in directions if one not in DIRECTIONS]
    if isinstance(directions, str) or wrong or not directions:
        raise ValueError(f"directions are some of {', '.join(map(repr, DIRECTIONS))}, not {directions!r}")
    found, n_units = _found(aligned, units, counts)
    if isinstance(units, UnitScores) and units.provenance.get("data", {}).get("sha") == prompts.fingerprint:
        notify(f"the units were scored on the very prompts of {prompts.name!r} that now judge them: hold some out")
    limit = tokens_needed(detector) if max_new_tokens is None else max_new_tokens
    until = early_verdict(aligned, prompts, detector, template)
    options: dict[str, Any] = {"max_new_tokens": limit, "template": template, "max_tokens": max_tokens, "until": until}
    none = FreezeMask.of_units({}, base)
    # The base is asked as the aligned model is: by its tokenizer, until an end token of either.
    asked = {**options, "tokenizer": tokenizer_of(aligned)}
    intact = generate_patched(base, aligned, prompts, {"": none}, **asked)[""], generate(aligned, prompts, **options)
    before, after = (refused(texts, detector) for texts in intact)
    _require_difference(before, after)
    jobs = _jobs(found, controls, seed)
    masks = {units.fingerprint: units for units in jobs.values()}
    curves = []
    for direction in dict.fromkeys(directions):
        pair = (base, aligned) if direction == "sufficient" else (aligned, base)
        texts = generate_patched(*pair, prompts, masks, outgoing=outgoing, progress=progress, **asked)
        verdicts = {key: refused(answers, detector) for key, answers in texts.items()}
        for chosen, draw in dict.fromkeys((chosen, draw) for chosen, draw, _ in jobs):
            rows = [verdicts[jobs[chosen, draw, count].fingerprint] for count in found]
            curves.append(PatchingCurve(direction, chosen, draw, torch.stack(rows)))
    made_of = {"method": units.method, **units.provenance} if isinstance(units, UnitScores) else "masks"
    provenance = {
        "units": made_of,
        "malicious": prompts.identity,
        "outgoing": outgoing,
        "detector": detector if isinstance(detector, str) else repr(detector),
        "max_new_tokens": limit,
        "template": template,
        "controls": controls,
        "seed": seed,
    }
    return PatchingCurves(tuple(found), n_units, before, after, tuple(curves), provenance)


def _found(
    model: HookedModel, units: UnitScores | Mapping[int, FreezeMask], counts: Sequence[int] | None
) -> tuple[dict[int, FreezeMask], int]:
    """The units to patch by their number, and how many there are at the sites that were scored."""
    shape = ModelShape.of(model)
    if not isinstance(units, UnitScores):
        if counts is not None:
            raise ValueError("masks by their number of units have their counts: leave counts= out, or pass scores")
        masks: dict[int, FreezeMask] = dict(sorted(as_sets(model, units).items()))  # type: ignore[arg-type]
        if wrong := [n for n, mask in masks.items() if mask.n_units() != n or not n]:
            raise ValueError(
                f"the mask of {wrong[0]!r} units has {masks[wrong[0]].n_units()}: masks are by their number"
            )
        sites = [site for site in SITES if any(mask.n_units(site) for mask in masks.values())]
        return masks, shape.n_layers * sum(map(shape.n_units, sites))
    units.shape.require_same(shape, "the scores")
    n_units = sum(values.numel() for values in units.scores.values())
    if counts is None:
        counts = sorted({max(1, int(share * n_units)) for share in SHARES})
    if not counts or any(a >= b for a, b in itertools.pairwise(counts)) or counts[-1] > n_units:
        raise ValueError(f"counts must ascend, from 1 to at most the {n_units} scored units, not {tuple(counts)}")
    return {count: units.top(count) for count in counts}, n_units


def _jobs(found: Mapping[int, FreezeMask], controls: int, seed: int) -> dict[tuple[Chosen, int, int], FreezeMask]:
    """What is patched, by kind of units, draw and count."""
    jobs: dict[tuple[Chosen, int, int], FreezeMask] = {("found", 0, n): units for n, units in found.items()}
    for chosen, draw in itertools.product(CONTROLS, range(controls)):
        for n, units in found.items():
            like = FreezeMask.random_units(units, seed=seed + draw, per_layer=chosen == "same layers")
            jobs[chosen, draw, n] = like
    return jobs


def _require_difference(base: Bool[Tensor, " prompt"], aligned: Bool[Tensor, " prompt"]) -> None:
    a, b = Share.of(aligned), Share.of(base)
    if not math.isfinite(a.rate) or a.rate - b.rate < LEAST:
        raise ValueError(
            f"the aligned model refuses {a} and the base {b}: there is no refusal that units could carry; take prompts "
            "that only the aligned model refuses, or another detector"
        )
