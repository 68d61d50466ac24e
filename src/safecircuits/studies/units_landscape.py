"""Whether refusals hang on some units: how far these may move at random, beside as many random units of equal norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.stats import mean_interval
from safecircuits.base.text import percent
from safecircuits.behavior.categories import category_frame
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.parameters import as_hooked
from safecircuits.model.sites import ModelShape
from safecircuits.results.result import Result
from safecircuits.studies.landscape import Landscape, Measure, moving, units_and_random, visage

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

OF = ("units", "random")
_KINDS = "by_category"


@dataclass(frozen=True)
class UnitsLandscape(Result):
    """Slices through the weights of some units and of as many random ones, a pair a draw.

    Attributes:
        points: each with ``of`` (units or random), ``draw``, the distance ``a``, and what was measured there; that may
            hold ``by_category``, as ``Behavior`` has it.
        figure, least: the basin is where this figure stays at this value or above.
        visage: mean safety left along random slices of all weights (``sc.studies.visage``); None where not asked for.

    Examples:
        >>> units = sc.FreezeMask.of_units({"mlp": {3: range(24)}}, model)
        >>> rates = lambda model: sc.evaluate(model, malicious=malicious).rates
        >>> found = sc.studies.landscape_study(model, units, rates, at=[-0.1, 0.1], draws=2)
        >>> [round(width, 3) for width in found.basins()["width"]], found.difference()[0]
        ([0.2, 0.2, 0.2, 0.2], 0.0)
    """

    points: tuple[Mapping[str, Any], ...]
    figure: str
    least: float
    visage: float | None
    provenance: Mapping[str, Any]

    def basins(self) -> pd.DataFrame:
        """One row a draw and kind of units: the ends ``low`` and ``high`` of the basin, and its ``width``."""
        import pandas as pd

        rows = []
        for draw in self._draws():
            for of in OF:
                own = [point for point in self.points if (point["of"], point["draw"]) == (of, draw)]
                low, high = Landscape(tuple(own)).basin(self.figure, self.least)
                rows.append({"of": of, "draw": draw, "low": low, "high": high, "width": high - low})
        return pd.DataFrame(rows)

    def difference(self) -> tuple[float, float, float]:
        """Width of the units' basin minus that of random ones, mean over draws with its 95 % interval."""
        widths = self.basins().pivot_table(index="draw", columns="of", values="width")
        return mean_interval(torch.tensor((widths["units"] - widths["random"]).to_numpy(), dtype=torch.float64))

    def to_frame(self) -> pd.DataFrame:
        """One row a point."""
        import pandas as pd

        return pd.DataFrame([{key: value for key, value in one.items() if key != _KINDS} for one in self.points])

    def categories(self) -> pd.DataFrame:
        """One row a point and category of its prompts (``category_frame``); none without categories."""
        names = ("of", "draw", "a")
        found = (({name: point[name] for name in names}, point.get(_KINDS, {})) for point in self.points)
        return category_frame(found, names)

    def record(self) -> dict[str, Any]:
        """By kind of units, distance for distance: mean over draws with its 95 % interval; widths, and VISAGE."""
        difference = dict(zip(("mean", "low", "high"), self.difference(), strict=True))
        return {
            "figure": self.figure,
            "least": self.least,
            "slices": {of: self._slice(of) for of in OF},
            "basins": self.basins().to_dict("records"),
            "difference": difference,
            "visage": self.visage,
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """The figure along the slices, mean over draws with 95 % intervals."""
        from safecircuits.plots.landscape import plot_slices

        return plot_slices(self, ax=ax)

    def __str__(self) -> str:
        widths = self.basins().groupby("of")["width"].mean()
        mean, low, high = self.difference()
        said = (
            f"basin of {self.figure} >= {self.least:g}: units {widths['units']:.3g} wide, random units of equal norm "
            f"{widths['random']:.3g}, difference {mean:.3g} [{low:.3g}, {high:.3g}] over {len(self._draws())} draws"
        )
        return said if self.visage is None else f"{said}; VISAGE {percent(self.visage)}"

    def _draws(self) -> list[int]:
        return sorted({int(point["draw"]) for point in self.points})

    def _slice(self, of: str) -> list[dict[str, float]]:
        own = [point for point in self.points if point["of"] == of]
        found = []
        for a in sorted({point["a"] for point in own}):
            values = torch.tensor([point[self.figure] for point in own if point["a"] == a], dtype=torch.float64)
            mean, low, high = mean_interval(values, within=(0, 1))
            found.append({"a": a, "mean": mean, "low": low, "high": high})
        return found


@checked
def landscape_study(
    model: Any,
    units: FreezeMask,
    measure: Measure,
    *,
    at: Sequence[float],
    figure: str = "malicious_refused",
    least: float = 0.5,
    draws: int = 3,
    seed: int = 0,
    visage_of: str | None = None,
    visage_directions: int = 1,
    visage_reach: float = 0.5,
    visage_samples: int = 21,
    progress: bool = False,
) -> UnitsLandscape:
    """Move some units' weights along random directions, and as many random units as far, and see where refusals end.

    Directions are normalised row by row; those of the random units have the length of the units' own. The weights are
    afterwards bit for bit what they were, also after an interrupt.

    Args:
        units: the units in question, such as ``groups["SCU"]``.
        measure: what is measured of the model as it is: numbers by name.
        at: distances; 0 is measured once, whether it is among them or not.
        figure, least: the basin is where this one of the numbers stays at ``least``.
        draws: directions, and random units, a pair each.
        visage_of: the number of ``measure`` that is the share of harm, for VISAGE; none unless given.
        visage_directions, visage_reach, visage_samples: as in ``visage``.

    Raises:
        ValueError: for no distance but 0, and a figure that ``measure`` does not give.

    Examples:
        >>> units = sc.FreezeMask.layers((3, 3))
        >>> rates = lambda model: sc.evaluate(model, malicious=malicious).rates
        >>> found = sc.studies.landscape_study(model, units, rates, at=[0.1], draws=1)
        >>> found.basins()["of"].tolist()
        ['units', 'random']
    """
    distances = sorted({float(a) for a in at} - {0.0})
    if not distances:
        raise ValueError("at holds the distances to move, and there is none but 0")
    hooked = as_hooked(model)
    shape = ModelShape.of(hooked)
    origin = dict(measure(model))
    for name in (figure, *([] if visage_of is None else [visage_of])):
        if name not in origin:
            raise ValueError(f"no figure {name!r} was measured; there are {', '.join(origin)}")
    points: list[dict[str, Any]] = []
    with moving(model) as move:

        def pairs() -> Iterator[tuple[int, str, dict[str, Tensor]]]:
            for draw in range(seed, seed + draws):
                move([])  # directions are as long as the weights' own rows
                for of, direction in units_and_random(model, units, shape, draw).items():
                    yield draw, of, direction

        for draw, of, direction in track(pairs(), "landscape", total=draws * len(OF), enabled=progress):
            points.append({"of": of, "draw": draw, "a": 0.0, **origin})
            for a in distances:
                move([(a, direction)])
                points.append({"of": of, "draw": draw, "a": a, **measure(model)})
    left = None
    if visage_of is not None:
        left = visage(
            model,
            lambda now: float(measure(now)[visage_of]),
            directions=visage_directions,
            reach=visage_reach,
            samples=visage_samples,
            seed=seed,
            progress=progress,
        )
    provenance = {
        "units": units.fingerprint,
        "at": distances,
        "draws": draws,
        "seed": seed,
        "shape": shape.architecture,
    }
    return UnitsLandscape(tuple(points), figure, least, left, provenance)
