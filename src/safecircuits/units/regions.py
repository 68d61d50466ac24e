"""Does a region depend on what it was found with? Overlap of regions beyond chance, of units or of blocks of layers.

Four ways of finding safety regions agree little over data sets (arXiv 2602.17696). Regions of a size overlap by chance,
large ones much, and two that are found in the same layers more. Here the overlap of two sets is corrected for chance,

    (|A ∩ B| − E) / (min(|A|, |B|) − E)

with E what regions of these sizes share on average when each is drawn at random: 0 by chance, 1 where one holds the
other. The p-value of a whole comparison is of its mean overlap, against redrawn regions: for units as many of each site
among those that could be taken, for blocks of layers a block as long anywhere. It is uniform where scores are noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.stats import Share
from safecircuits.behavior.coherence import unlikely_answers
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.generate import generate
from safecircuits.behavior.verdict import tokens_needed, verdicts
from safecircuits.behavior.verdict_table import Tally
from safecircuits.hooks.ablate import ablated
from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.units.finders import FINDERS
from safecircuits.units.random_regions import beyond_chance, block, random_blocks, random_units_like

if TYPE_CHECKING:
    import pandas as pd

Find = Callable[..., FreezeMask]
"""Finds a region: ``find(model, **setting)`` gives its units, or whole layers as units."""


@dataclass(frozen=True)
class RegionOverlap(Result):
    """How far regions overlap beyond chance, pair by pair.

    Examples:
        >>> scores = {name: sc.score_units(model, data) for name, data in {"a": malicious, "b": normal}.items()}
        >>> found = sc.units.region_overlap({name: s.top(30) for name, s in scores.items()}, draws=99)
        >>> found.corrected.shape, 0 < found.p <= 1
        (torch.Size([2, 2]), True)
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Units, or layers of blocks, in each region, without those taken out."""
    shared: Float[Tensor, "region region"]
    corrected: Float[Tensor, "region region"]
    """0 by chance, 1 where one holds the other; NaN where a region is empty or holds all there is."""
    mean: float
    """Over pairs."""
    p: float
    """Of a mean as large by chance."""
    truth: Float[Tensor, " region"] | None
    """Corrected overlap of each region with the true one, where that is known."""
    truth_p: float | None
    provenance: dict[str, Any]

    @property
    def verdict(self) -> str:
        """The mean overlap beyond chance, and with the truth."""
        text = f"{len(self.names)} regions overlap by {self.mean:+.2f} beyond chance (p = {self.p:.3g})"
        if self.truth is not None:
            text += f"; with the true region by {float(self.truth.nanmean()):+.2f} (p = {self.truth_p:.3g})"
        return text

    def to_frame(self) -> pd.DataFrame:
        """One row a pair: ``a``, ``b``, units ``shared``, and the overlap ``corrected`` for chance."""
        import pandas as pd

        rows = [
            (self.names[i], self.names[j], float(self.shared[i, j]), float(self.corrected[i, j]))
            for i, j in itertools.combinations(range(len(self.names)), 2)
        ]
        return pd.DataFrame(rows, columns=["a", "b", "shared", "corrected"])

    def record(self) -> dict[str, Any]:
        """``names``, ``corrected`` as a matrix, ``mean`` and ``p``, and where known those with the ``truth``."""
        truth = None if self.truth is None else {"corrected": self.truth.tolist(), "p": self.truth_p}
        return {
            "names": list(self.names),
            "sizes": list(self.sizes),
            "corrected": self.corrected.tolist(),
            "mean": self.mean,
            "p": self.p,
            "truth": truth,
        }


@dataclass(frozen=True)
class RegionStability(Result):
    """Regions of one kind found with several settings: overlap, without utility's units, and what each decides.

    Examples:
        >>> settings = {"first": {"data": malicious[:4]}, "second": {"data": malicious[4:]}}
        >>> found = sc.units.region_stability(
        ...     model, settings, lambda model, data: sc.score_units(model, data).top(40), judged={"held": malicious}
        ... )
        >>> found.functional.shape
        torch.Size([2, 1])
    """

    overlap: RegionOverlap
    without_utility: RegionOverlap | None
    """The same of what is left of each without the utility region."""
    judged: tuple[str, ...]
    intact: Float[Tensor, " judged"]
    """What is refused of each judged set as the model is."""
    functional: Float[Tensor, "region judged"]
    """The share of that refusal which is lost without the region: does what was found on A decide B?"""
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """What the answers to each judged set are, as the model is; empty in files of earlier versions."""
    left: tuple[Mapping[str, Tally], ...] = ()
    """The same without each region."""

    @property
    def verdict(self) -> str:
        """Overlap before and after utility is taken out, and the least that a region decides elsewhere."""
        lines = [str(self.overlap)]
        if self.without_utility is not None:
            lines.append(f"without utility's units: {self.without_utility}")
        if self.functional.numel():
            least, most = float(self.functional.min()), float(self.functional.max())
            lines.append(f"without a region {least:.0%} to {most:.0%} of the refusal of a judged set is lost")
            if strange := sum(one.incoherent for of in self.left for one in of.values()):
                answers = sum(one.n for of in self.left for one in of.values())
                lines[-1] += f"; {strange} of {answers} answers without one are incoherent"
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """One row a region and judged set: the share of its refusal that is ``lost`` without the region.

        Beside it what the answers without the region are: shares that are ``incoherent``, ``cut`` and so on, of ``n``.
        """
        import pandas as pd

        rows = [
            {
                "found_on": name,
                "judged_on": judged,
                "refused": float(self.intact[j]),
                "lost": float(self.functional[i, j]),
                **(self.left[i][judged].record("") if self.left else {}),
            }
            for i, name in enumerate(self.overlap.names)
            for j, judged in enumerate(self.judged)
        ]
        return pd.DataFrame(rows, columns=None if rows else ["found_on", "judged_on", "refused", "lost"])

    def record(self) -> dict[str, Any]:
        """The overlaps' records, and the ``functional`` matrix with the names of what was ``judged``."""
        after = None if self.without_utility is None else self.without_utility.record()
        functional = {"judged": list(self.judged), "lost": self.functional.tolist()}
        return {"overlap": self.overlap.record(), "without_utility": after, "functional": functional}


@checked
def region_overlap(
    regions: Mapping[str, FreezeMask],
    *,
    without: FreezeMask | None = None,
    truth: FreezeMask | None = None,
    draws: int = 999,
    seed: int = 0,
) -> RegionOverlap:
    """Compare regions of one model, of units or of blocks of layers, with each other and with the truth.

    Regions that are all contiguous blocks of whole layers are compared as such: a random block is one of that length.

    Args:
        regions: by the name of what each was found with.
        without: units that do not count, such as those that utility needs; they are in no random region either.
        truth: the planted region, where that is known.
        draws, seed: of the p-values.

    Raises:
        ValueError: for fewer than two regions, an empty one, and regions of other models.

    Examples:
        >>> found = sc.units.region_overlap(
        ...     {name: sc.FreezeMask.layers(block, model) for name, block in {"a": (2, 4), "b": (3, 5)}.items()}
        ... )
        >>> found.sizes
        (3, 3)
    """
    if not isinstance(regions, Mapping) or len(regions) < 2:
        raise ValueError(
            "overlap compares regions: give at least two by name, such as {'seed 0': mask, 'seed 1': mask}"
        )
    shape = next(iter(regions.values())).shape if isinstance(next(iter(regions.values())), FreezeMask) else None
    if shape is None:
        raise ValueError("regions are FreezeMasks of a model: use mask.on(model) for layers alone")
    masks = {name: units_of(shape, region, f"region {name!r}") for name, region in regions.items()}
    known = None if truth is None else units_of(shape, truth, "the true region")
    if without is not None:
        gone = units_of(shape, without, "the units that do not count")
        masks = {name: mask - gone for name, mask in masks.items()}
        known = known - gone if known is not None and known - gone else None
    if empty := [name for name, mask in masks.items() if not mask]:
        raise ValueError(f"region {empty[0]!r} is empty{'' if without is None else ' without those that do not count'}")
    every = [*masks.values(), *([] if known is None else [known])]
    rng = np.random.default_rng(seed)
    if without is None and all(block(mask) is not None for mask in every):
        sets, held, redraw = random_blocks(every, shape.n_layers)
    else:
        sets, held, redraw = random_units_like(every, None if without is None else gone)
    n = len(masks)
    held[n:] = sets[n:]  # the truth is where it is
    expected = held @ held.T
    shared = sets @ sets.T
    corrected = beyond_chance(sets, shared, expected)
    pairs = np.triu_indices(n, 1)
    mean = float(np.nanmean(corrected[pairs])) if np.isfinite(corrected[pairs]).any() else float("nan")
    by_chance, with_truth = np.empty(draws), np.empty(draws)
    for k in range(draws):
        again = redraw(rng)
        again[n:] = sets[n:]
        there = beyond_chance(again, again @ again.T, expected)
        by_chance[k] = np.nanmean(there[pairs]) if np.isfinite(there[pairs]).any() else 0.0
        with_truth[k] = np.nanmean(there[:n, n]) if known is not None and np.isfinite(there[:n, n]).any() else 0.0
    p = float((1 + (by_chance >= mean - 1e-12).sum()) / (draws + 1)) if mean == mean else mean  # no overlap to judge
    true = None if known is None else torch.from_numpy(corrected[:n, n].copy())
    true_p = None
    if true is not None:
        true_p = float((1 + (with_truth >= float(true.nanmean()) - 1e-12).sum()) / (draws + 1))
    sizes = tuple(int(row.sum()) for row in sets[:n])
    as_tensors = torch.from_numpy(shared[:n, :n].copy()), torch.from_numpy(corrected[:n, :n].copy())
    return RegionOverlap(tuple(masks), sizes, *as_tensors, mean, p, true, true_p, {"draws": draws, "seed": seed})


@checked
def region_stability(
    model: HookedModel,
    settings: Mapping[str, Mapping[str, Any]],
    find: Find | str,
    *,
    utility: FreezeMask | None = None,
    truth: FreezeMask | None = None,
    judged: Mapping[str, PromptSet] | None = None,
    detector: str | RefusalDetector = "opening",
    max_new_tokens: int | None = None,
    template: str = "auto",
    draws: int = 999,
    seed: int = 0,
    progress: bool = False,
) -> RegionStability:
    """Find a region with each setting, compare the regions, and remove each to see what it decides on every judged set.

    A setting is what the finder is called with: a data set, a harm category, a seed, a template, a calibration size.
    Any finder will do that gives units or layers, such as ``lambda model, data: score_units(model, data).top(64)``.
    Ready are ``"layers"``, ``"units"`` and ``"direction"`` (``FINDERS``), called with ``malicious`` and ``normal``.

    Args:
        settings: keyword arguments of ``find`` by the name of the setting.
        find: called as ``find(model, **setting)``; or the name of one that is ready.
        utility: units that utility needs, such as ``utility_scores.top(n)``: overlap is measured with and without.
        truth: where the region is known.
        judged: prompts that the model refuses, by name; best others than those of the settings.
        detector, max_new_tokens, template: how refusals of them are counted.

    Raises:
        ValueError: for fewer than two settings, a set of one prompt among them or among those judged, a finder that
            gives no units, and a judged set of which the model refuses nothing.

    Examples:
        >>> settings = {f"seed {s}": {"data": malicious.take(4, seed=s)} for s in (0, 1)}
        >>> found = sc.units.region_stability(model, settings, lambda model, data: sc.score_units(model, data).top(40))
        >>> found.overlap.names
        ('seed 0', 'seed 1')
    """
    if not isinstance(settings, Mapping) or len(settings) < 2:
        raise ValueError(
            "stability compares settings: give at least two by name, such as {'seed 0': {'data': prompts}}"
        )
    for name, setting in settings.items():
        for argument, value in setting.items():
            if isinstance(value, PromptSet) and len(value) < 2:
                raise ValueError(
                    f"setting {name!r} has one prompt as {argument}: a region of one prompt is that prompt's"
                )
    sets = dict(judged or {})
    if single := [name for name, data in sets.items() if len(data) < 2]:
        raise ValueError(f"judged set {single[0]!r} has one prompt: a refusal rate needs at least two")
    shape, find = ModelShape.of(model), _finder(find)
    regions = {
        name: units_of(shape, find(model, **setting), f"the region found with {name!r}")
        for name, setting in track(settings.items(), "regions", total=len(settings), enabled=progress)
    }
    options: dict[str, Any] = {"truth": truth, "draws": draws, "seed": seed}
    overlap = region_overlap(regions, **options)
    after = None if utility is None else region_overlap(regions, without=utility, **options)
    limit = tokens_needed(detector) if max_new_tokens is None else max_new_tokens

    def asked() -> tuple[list[float], dict[str, Tally]]:
        """Rates, in the order of the judged sets, and what the answers are."""
        written = {name: generate(model, data, max_new_tokens=limit, template=template) for name, data in sets.items()}
        read = {
            name: verdicts(answers, detector, unlikely=unlikely_answers(model, answers, template))
            for name, answers in written.items()
        }
        return [Share.of(one.refused).rate for one in read.values()], {name: one.tally for name, one in read.items()}

    rates, tallies = asked()
    if nothing := [name for name, rate in zip(sets, rates, strict=True) if not rate]:
        raise ValueError(f"the model refuses nothing of judged set {nothing[0]!r}, so that no region can decide it")
    without: list[tuple[list[float], dict[str, Tally]]] = []
    for region in regions.values() if sets else ():
        with ablated(model, region):
            without.append(asked())
    intact = torch.tensor(rates, dtype=torch.float64)
    left = torch.tensor([there for there, _ in without], dtype=torch.float64).reshape(len(without), len(sets))
    lost = (intact - left) / intact if sets else torch.zeros(len(regions), 0, dtype=torch.float64)
    return RegionStability(overlap, after, tuple(sets), intact, lost, tallies, tuple(one for _, one in without))


def _finder(find: Find | str) -> Find:
    if not isinstance(find, str):
        return find
    if find not in FINDERS:
        raise ValueError(f"no finder {find!r}; there are {', '.join(FINDERS)}, and any function of your own")
    return FINDERS[find]
