"""The safety landscape: how far a model may move in a direction of its weights before it stops refusing.

Slices go through the weights along one direction or two: drawn at random and normalised filter by filter (Li et al.
2018), or from one model to another (a fine-tuned one, or safety minus utility), of all weights or of some units alone.
VISAGE (Peng et al. 2024) is the mean safety that is left along random slices. Whatever is measured, the weights are
afterwards bit for bit what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.fused import fuse_again
from safecircuits.model.in_use import used_alone
from safecircuits.model.parameters import as_hooked, live_parameters
from safecircuits.model.sites import ModelShape
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

WeightDirection = Mapping[str, Tensor]
"""By parameter name what is added to a weight at distance 1; parameters that are left out do not move."""
Measure = Callable[[Any], Mapping[str, float]]
"""Numbers by name of the model as it is: ``lambda model: evaluate(model, malicious=…, utility=…).rates``."""


@dataclass(frozen=True)
class Landscape(Result):
    """What was measured along one direction or two.

    Attributes:
        points: each with ``a``, for two directions ``b``, and what was measured there.

    Examples:
        >>> direction = sc.studies.random_direction(model, seed=0)
        >>> rates = lambda model: sc.evaluate(model, malicious=malicious).rates
        >>> found = sc.studies.slices(model, [direction], rates, at=[-0.1, 0.0, 0.1])
        >>> found.points[1]["malicious_refused"]
        1.0
    """

    points: tuple[Mapping[str, float], ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a point."""
        import pandas as pd

        return pd.DataFrame(list(self.points))

    def record(self) -> dict[str, Any]:
        """The ``points`` in order."""
        return {"points": [dict(point) for point in self.points]}

    def plot(self, figure: str = "malicious_refused", ax: Axes | None = None, *, least: float = 0.5) -> Axes:
        """The figure along the one direction, or as a map over the two with the line where it is ``least``."""
        from safecircuits.plots.landscape import plot_slice

        self._require(figure)
        return plot_slice(self, figure, ax, least=least)

    def _require(self, figure: str) -> None:
        """A ValueError for a figure that was not measured."""
        if figure not in self.points[0]:
            raise ValueError(f"no figure {figure!r} was measured; there are {', '.join(self.points[0])}")

    def basin(self, figure: str = "malicious_refused", least: float = 0.5) -> tuple[float, float]:
        """How far the figure stays at ``least`` or above to both sides of 0 along the one direction.

        Raises:
            ValueError: for a slice of two directions or without the point 0, or a figure that was not measured.
        """
        if any("b" in point for point in self.points) or not any(point["a"] == 0 for point in self.points):
            raise ValueError("a basin is measured along one direction, with the unmoved model (0) among the points")
        self._require(figure)
        ends = []
        for side in (-1, 1):
            reached = 0.0
            for point in sorted((p for p in self.points if side * p["a"] >= 0), key=lambda p: side * p["a"]):
                if point[figure] < least:
                    break
                reached = point["a"]
            ends.append(reached)
        return ends[0], ends[1]


@checked
@torch.no_grad()
def random_direction(
    model: Any, seed: int = 0, units: FreezeMask | None = None, *, scaled: Literal["row", "matrix"] = "row"
) -> dict[str, Tensor]:
    """Gaussian in every matrix, each row scaled to the norm of the weight's own row; vectors do not move.

    Filter normalisation of Li et al. (2018): otherwise a direction says how large the weights are.

    Args:
        units: only their entries move; the norm is of the row's entries that do.
        scaled: row by row, or each matrix as a whole, as in Peng et al. (2024).

    Examples:
        >>> one = sc.studies.random_direction(model, units=sc.FreezeMask.layers((3, 3)))
        >>> len(one), len(sc.studies.random_direction(model)) > 8 * len(one)
        (7, True)
    """
    generator = torch.Generator().manual_seed(seed)
    where = None if units is None else _entries(model, units)
    found = {}
    for name, parameter in live_parameters(model).items():
        if parameter.ndim < 2:
            continue
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if where is not None and name not in where:
            continue
        weight = parameter.detach().cpu().double()
        if where is not None:
            drawn, weight = drawn * where[name], weight * where[name]
        over = -1 if scaled == "row" else tuple(range(weight.ndim))
        size, own = (torch.linalg.vector_norm(value, dim=over, keepdim=True) for value in (drawn, weight))
        found[name] = (drawn * torch.where(size > 0, own / size.clamp(min=1e-300), 0.0)).to(parameter)
    return found


@torch.no_grad()
def direction_between(before: Any, after: Any, units: FreezeMask | None = None) -> dict[str, Tensor]:
    """From one model to another of its shape and backend: at distance 1 ``before`` becomes ``after``, to rounding.

    With a fine-tuned model this is the fine-tuning direction.

    Args:
        units: only their entries move.

    Raises:
        ValueError: for models of different shapes or backends.

    Examples:
        >>> way = sc.studies.direction_between(model, sc.load_model("unaligned"))
        >>> rates = lambda model: sc.evaluate(model, malicious=malicious).rates
        >>> found = sc.studies.slices(model, [way], rates, at=[0.0, 1.0])
        >>> [point["malicious_refused"] for point in found.points]
        [1.0, 0.0]
    """
    ModelShape.of(as_hooked(before)).require_same(ModelShape.of(as_hooked(after)), "the model before")
    ours, theirs = live_parameters(before), live_parameters(after)
    if ours.keys() != theirs.keys():
        raise ValueError("the two models compute with differently named weights: load both with one backend")
    where = None if units is None else _entries(before, units)
    names = ours if where is None else where
    found = {name: (theirs[name].to(ours[name]) - ours[name]).detach().clone() for name in names}
    return found if where is None else {name: change * where[name].to(change) for name, change in found.items()}


def of_equal_norm(direction: WeightDirection, like: WeightDirection) -> dict[str, Tensor]:
    """The direction, as long as another over all weights: safety units beside as many random ones, say.

    Examples:
        >>> one, other = (sc.studies.random_direction(model, seed) for seed in (0, 1))
        >>> scaled = sc.studies.of_equal_norm(one, {name: 3 * value for name, value in one.items()})
        >>> all(torch.allclose(scaled[name], 3 * one[name]) for name in one)
        True
    """
    own, wanted = (sum(float(v.double().square().sum()) for v in one.values()) ** 0.5 for one in (direction, like))
    if not own > 0:
        raise ValueError("the direction is zero everywhere: nothing moves along it")
    return {name: value * (wanted / own) for name, value in direction.items()}


@checked
def slices(
    model: Any,
    directions: Sequence[WeightDirection],
    measure: Measure,
    *,
    at: Sequence[float],
    across: Sequence[float] | None = None,
    progress: bool = False,
) -> Landscape:
    """Measure the model at θ + a d₁, or at θ + a d₁ + b d₂ for every pair.

    Args:
        directions: one or two.
        at, across: distances along the first and the second, ``at`` in both unless given.

    Raises:
        ValueError: for another number of directions, or one of weights that the model does not have.

    Examples:
        >>> pair = [sc.studies.random_direction(model, seed) for seed in (0, 1)]
        >>> found = sc.studies.slices(
        ...     model, pair, lambda model: sc.evaluate(model, malicious=malicious).rates, at=[0.0, 0.1]
        ... )
        >>> len(found.points)
        4
    """
    if len(directions) not in (1, 2):
        raise ValueError(f"a slice has one direction or two, not {len(directions)}")
    second = [None] if len(directions) == 1 else list(at if across is None else across)
    points = []
    with moving(model) as move:
        pairs = [(a, b) for a in at for b in second]
        for a, b in track(pairs, "landscape", enabled=progress):
            move([(a, directions[0])] if b is None else [(a, directions[0]), (b, directions[1])])
            points.append({"a": a, **({} if b is None else {"b": b}), **measure(model)})
    return Landscape(tuple(points))


@contextmanager
def moving(model: Any) -> Iterator[Callable[[Sequence[tuple[float, WeightDirection]]], None]]:
    """Inside the block a function that moves the weights from where they were; afterwards they are that to the bit."""
    with used_alone(model), torch.no_grad():
        live = live_parameters(model)
        start = {name: parameter.detach().clone() for name, parameter in live.items()}

        def move(steps: Sequence[tuple[float, WeightDirection]]) -> None:
            for _, direction in steps:
                for name, value in direction.items():
                    if name not in live or live[name].shape != value.shape:
                        raise ValueError(f"the direction moves {name!r}, which this model does not have in that shape")
            for name, parameter in live.items():
                parameter.copy_(start[name])
                for far, direction in steps:
                    if far and name in direction:
                        parameter.add_(direction[name].to(parameter), alpha=far)
            fuse_again(model)

        try:
            yield move
        finally:
            for name, parameter in live.items():
                parameter.copy_(start[name])
            fuse_again(model)


def units_and_random(model: Any, units: FreezeMask, shape: ModelShape, draw: int) -> dict[str, dict[str, Tensor]]:
    """A random direction of some units, and one of as many random units of the same length."""
    own = random_direction(model, draw, units)
    elsewhere = random_direction(model, draw, FreezeMask.random_units(units, shape, draw))
    return {"units": own, "random": of_equal_norm(elsewhere, own)}


@checked
def basins(
    model: Any,
    units: FreezeMask,
    measure: Measure,
    *,
    at: Sequence[float],
    figure: str = "malicious_refused",
    least: float = 0.5,
    controls: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """How wide the basin is along random directions of some units, and of as many random ones of equal norm.

    One row a draw: ``of`` (units or random), ``seed``, and the ends ``low`` and ``high`` (``Landscape.basin``), so that
    a narrower basin of safety units says that refusals hang on them and not on how far weights move.

    Args:
        controls: draws of a direction, and for each one of random units.

    Raises:
        ValueError: as ``Landscape.basin`` does.

    Examples:
        >>> units = sc.FreezeMask.of_units({"mlp": {3: range(24)}}, model)
        >>> rates = lambda model: sc.evaluate(model, malicious=malicious).rates
        >>> sc.studies.basins(model, units, rates, at=[0.0, 0.1], controls=1)["of"].tolist()
        ['units', 'random']
    """
    import pandas as pd

    shape, rows = ModelShape.of(as_hooked(model)), []
    for draw in range(seed, seed + controls):
        for of, direction in units_and_random(model, units, shape, draw).items():
            low, high = slices(model, [direction], measure, at=at).basin(figure, least)
            rows.append({"of": of, "seed": draw, "low": low, "high": high})
    return pd.DataFrame(rows)


@checked
def visage(
    model: Any,
    harm: Callable[[Any], float],
    *,
    directions: int = 3,
    samples: int = 21,
    reach: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> float:
    """Mean safety left along random slices, E[1 − S | S < 1] with S the harm at θ + a d, a even within ±``reach``.

    Peng et al. (2024), in shares and not percent: 0 where every model does all that is asked, 1 where none does. The
    directions (each matrix scaled as a whole), the reach and the 21 distances are those of the authors' code, which
    takes one direction. Models that break into no language do no harm either, so look at a utility beside it.

    Args:
        harm: the share of harmful prompts complied with.
        directions: how many random directions.
        samples: distances along each, evenly from −``reach`` to ``reach``.

    Examples:
        >>> complied = lambda model: 1 - sc.evaluate(model, malicious=malicious).rates["malicious_refused"]
        >>> sc.studies.visage(model, complied, directions=1, samples=2, reach=0.01)
        1.0
    """
    at = torch.linspace(-reach, reach, samples, dtype=torch.float64).tolist()
    left = []
    for number in range(directions):
        direction = random_direction(model, seed=seed * 1000 + number, scaled="matrix")
        found = slices(model, [direction], lambda now: {"harm": float(harm(now))}, at=at, progress=progress)
        left += [1 - point["harm"] for point in found.points if point["harm"] < 1]
    return sum(left) / len(left) if left else 0.0


def _entries(model: Any, units: FreezeMask) -> dict[str, Tensor]:
    """By parameter name, 1 where an entry belongs to the units."""
    hooked = as_hooked(model)
    masks = units_of(hooked, units).hooked_masks(hooked)
    by_id = {id(p): masks[name] for name, p in hooked.named_parameters() if name in masks}
    live = live_parameters(model)
    return {name: by_id[id(p)].cpu().double() for name, p in live.items() if id(p) in by_id}
