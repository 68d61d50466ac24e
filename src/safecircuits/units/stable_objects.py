"""Layers, units and directions over the same settings: which object depends least on what it is found with?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safecircuits.base.arguments import checked
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.units.finders import FINDERS, NoRegion
from safecircuits.units.regions import RegionStability, region_stability

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ObjectStability(Result):
    """The stability of each object over the same settings.

    Examples:
        >>> settings = {f"seed {s}": {"malicious": malicious.take(6, seed=s), "normal": normal} for s in (0, 1)}
        >>> found = sc.units.object_stability(model, settings, draws=49)
        >>> list(found.objects)
        ['layers', 'units', 'direction']
    """

    objects: Mapping[str, RegionStability]
    left_out: Mapping[str, str]
    """Objects that some setting does not give, and why: their finder names none."""

    @property
    def verdict(self) -> str:
        """A line an object."""
        lines = [f"{name}: {found.verdict}" for name, found in self.objects.items()]
        return "\n".join([*lines, *(f"{name}: left out, {why}" for name, why in self.left_out.items())])

    def to_frame(self) -> pd.DataFrame:
        """One row an object: mean ``overlap`` beyond chance and ``p``, both ``without_utility``, with the ``truth``.

        Then the least and the most of a judged set's refusal that is lost without a region found with any setting.
        """
        import pandas as pd

        rows = []
        for name, found in self.objects.items():
            after, truth = found.without_utility, found.overlap.truth
            lost = found.functional
            rows.append(
                {
                    "object": name,
                    "settings": len(found.overlap.names),
                    "overlap": found.overlap.mean,
                    "p": found.overlap.p,
                    "without_utility": None if after is None else after.mean,
                    "without_utility_p": None if after is None else after.p,
                    "truth": None if truth is None else float(truth.nanmean()),
                    "truth_p": found.overlap.truth_p,
                    "least_lost": float(lost.min()) if lost.numel() else None,
                    "most_lost": float(lost.max()) if lost.numel() else None,
                }
            )
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """Each object's record by its name, and what was ``left_out``."""
        return {**{name: found.record() for name, found in self.objects.items()}, "left_out": dict(self.left_out)}


@checked
def object_stability(
    model: HookedModel,
    settings: Mapping[str, Mapping[str, Any]],
    *,
    finders: Mapping[str, Callable[..., FreezeMask]] = FINDERS,
    utility: FreezeMask | None = None,
    truth: FreezeMask | None = None,
    judged: Mapping[str, PromptSet] | None = None,
    **options: Any,
) -> ObjectStability:
    """``region_stability`` of layers, units and directions with the same settings.

    Settings may be data sets, harm categories, draws by seed, templates, calibration sizes or languages: whatever the
    finders are called with. An object that its finder does not find with some setting is left out, with the reason.

    Args:
        settings: by name, ``{"malicious": …, "normal": …}`` and, where it varies, ``"template": …``.
        finders: by object; those that are ready unless given (``FINDERS``).
        utility, truth, judged, options: as in ``region_stability``.

    Raises:
        ValueError: as ``region_stability`` does, but for an object that is not found; and where none is.

    Examples:
        >>> settings = {f"seed {s}": {"malicious": malicious.take(6, seed=s), "normal": normal} for s in (0, 1)}
        >>> found = sc.units.object_stability(model, settings, draws=49)
        >>> found.to_frame()[["object", "settings"]].values.tolist()
        [['layers', 2], ['units', 2], ['direction', 2]]
    """
    found: dict[str, RegionStability] = {}
    left_out: dict[str, str] = {}
    for name, find in finders.items():
        try:
            found[name] = region_stability(
                model, settings, find, utility=utility, truth=truth, judged=judged, **options
            )
        except NoRegion as error:
            left_out[name] = str(error)
    if not found:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in left_out.items()) or "there are no finders")
    return ObjectStability(found, left_out)
