"""Is a group what its name says? Remove it, measure safety and utility, and remove as many random units beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import torch

from safecircuits.base.arguments import checked
from safecircuits.base.counted import mean_beside
from safecircuits.base.progress import track
from safecircuits.base.stats import rate_interval
from safecircuits.base.text import percent
from safecircuits.behavior.categories import category_frame, sum_of
from safecircuits.behavior.divergence import divergences, references_of
from safecircuits.behavior.evaluate import EvaluationOptions, judge_as, written
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.stakes import tell_if_nothing_to_lose
from safecircuits.hooks.ablate import UnitValues, ablated
from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.sites import HookedModel
from safecircuits.results.result import Result
from safecircuits.units.groups import UnitGroups
from safecircuits.units.removals import Removals

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Name = TypeVar("Name", str, int)

ONE_DRAW = "one draw of random units has no spread, so it cannot decide whether chance does the same: --controls 5 can"
"""What is said beside a comparison with a single draw."""
NO_DRAW = "no random units stand beside those removed, so it cannot be told whether as many others do the same"
"""What is said where there is no comparison."""


@dataclass(frozen=True)
class Ablation:
    """Behaviour of a model without some of its units, and without as many random ones, over several draws.

    Examples:
        >>> found = {"top 24": sc.score_units(model, malicious).top(24)}
        >>> row = sc.ablate_units(model, found, controls=2, malicious=malicious.take(4)).rows[0]
        >>> sorted(row.behavior.rates)
        ['malicious_refused']
        >>> low, high = row.control_interval("malicious_refused")[1:]
    """

    name: str
    n_units: int
    behavior: Behavior
    random_controls: tuple[Behavior, ...]

    def control_interval(self, rate: str) -> tuple[float, float, float]:
        """Mean of a rate over the random draws and its 95 % interval (``rate_interval``; NaN for a single draw).

        Raises:
            ValueError: if there were no random draws.
        """
        if not self.random_controls:
            raise ValueError(f"{self.name!r} was removed without random controls: pass controls=")
        shares = [b.shares[rate] for b in self.random_controls]
        rates = torch.tensor([share.rate for share in shares], dtype=torch.float64)
        return rate_interval(rates, trials=shares[0].n if shares else None)


@dataclass(frozen=True)
class AblationTable(Result):
    """Ablations beside the intact model.

    Examples:
        >>> found = {"top 24": sc.score_units(model, malicious).top(24)}
        >>> table = sc.ablate_units(model, found, controls=1, malicious=malicious.take(4))
        >>> table.intact.rates["malicious_refused"]
        1.0
    """

    intact: Behavior
    rows: tuple[Ablation, ...]

    @property
    def verdict(self) -> str:
        """Each rate intact and without each selection, beside the mean over as many random units: a line each."""
        lines = [f"intact: {_shown(self.intact.rates)}"]
        for row in self.rows:
            beside = mean_rates(row.random_controls) if row.random_controls else {}
            lines.append(f"without {row.name} ({row.n_units:,} units): {_shown(row.behavior.rates, beside)}")
        return "\n".join(lines)

    @property
    def caveat(self) -> str:
        """What to hold against it first: that nothing random, or too little, stands beside what was removed."""
        if any(len(row.random_controls) == 1 for row in self.rows):
            return ONE_DRAW
        return NO_DRAW if any(not row.random_controls for row in self.rows) else ""

    def to_frame(self) -> pd.DataFrame:
        """One row an ablation: rates, KL to the intact model in nats; of random controls the mean over draws."""
        import pandas as pd

        table: list[dict[str, Any]] = [{"removed": "nothing", "units": 0, **self.intact.figures}]
        for row in self.rows:
            table.append({"removed": row.name, "units": row.n_units, **row.behavior.figures, **row.behavior.kl_means})
            if row.random_controls:
                table.append(
                    {
                        "removed": f"random, as many as {row.name}",
                        "units": row.n_units,
                        **mean_figures(row.random_controls),
                        **mean_kl(row.random_controls),
                    }
                )
        return pd.DataFrame(table)

    def categories(self) -> pd.DataFrame:
        """One row a removal, set and category of its prompts (``category_frame``); none without categories.

        Of random controls the answers of all draws are counted together.

        Examples:
            >>> kinds = sc.PromptSet("kinds", malicious.prompts[:4], categories=("theft", "theft", "fraud", "fraud"))
            >>> found = {"top 24": sc.score_units(model, malicious).top(24)}
            >>> sc.ablate_units(model, found, controls=1, malicious=kinds).categories().category.unique().tolist()
            ['theft', 'fraud']
        """
        measured = [({"removed": "nothing"}, self.intact.by_category)]
        for row in self.rows:
            measured.append(({"removed": row.name}, row.behavior.by_category))
            if row.random_controls:
                together = sum_of(control.by_category for control in row.random_controls)
                measured.append(({"removed": f"random, as many as {row.name}"}, together))
        return category_frame(measured, ["removed"])

    def record(self) -> dict[str, Any]:
        """``units`` and rates left by what is removed, ``nothing`` first; ``random`` has the means over the draws."""
        rows: dict[str, Any] = {"nothing": {"units": 0, **self.intact.record()}}
        for row in self.rows:
            rows[row.name] = {"units": row.n_units, **row.behavior.record()}
            if row.random_controls:
                names = row.random_controls[0].rates
                draws = {f"{name}_draws": [control.rates[name] for control in row.random_controls] for name in names}
                rows[row.name]["random"] = {
                    "units": row.n_units,
                    "draws": len(row.random_controls),
                    **mean_figures(row.random_controls),
                    **mean_kl(row.random_controls),
                    **row.random_controls[0].answer_names,
                    **draws,
                }
        return rows

    def plot(self, ax: Axes | None = None) -> Axes:
        """Rates without each selection as bars, without as many random units as diamonds."""
        from safecircuits.plots.units import plot_ablation

        return plot_ablation(self, metrics=tuple(self.intact.rates), ax=ax)


def _shown(rates: Mapping[str, float], beside: Mapping[str, float] | None = None) -> str:
    """``malicious refused 27.0 % (random 98.0 %), …``."""
    controls = {name: f" (random {percent(rate)})" for name, rate in (beside or {}).items()}
    return ", ".join(
        f"{name.replace('_', ' ')} {percent(rate)}{controls.get(name, '')}" for name, rate in rates.items()
    )


def mean_rates(behaviors: Sequence[Behavior]) -> dict[str, float]:
    """Mean of each rate over several measurements."""
    return _means([one.rates for one in behaviors])


def mean_kl(behaviors: Sequence[Behavior]) -> dict[str, float]:
    """Mean of each KL to the intact model over several measurements."""
    return _means([one.kl_means for one in behaviors])


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def mean_figures(behaviors: Sequence[Behavior]) -> dict[str, float]:
    """The same with what stands beside rates of refusal (``Behavior.figures``)."""
    rates = mean_rates(behaviors)
    return rates | mean_beside([one.figures for one in behaviors], rates)


@checked
def ablate_units(
    model: HookedModel,
    named_units: Mapping[str, FreezeMask],
    *,
    controls: int = 3,
    per_layer: bool = False,
    seed: int = 0,
    to: UnitValues | None = None,
    spare: int = 0,
    resume: str | Path | None = None,
    progress: bool = False,
    **sets: Unpack[EvaluationOptions],
) -> AblationTable:
    """Ablate each named set of units and measure what is left, beside as many random units (SSAH Table 1).

    Args:
        named_units: units by name, such as ``{"SCU": groups["SCU"], "top": scores.top(24)}``.
        controls: random draws of equal size beside each set (``FreezeMask.random_units`` by ``seed``, ``seed`` + 1, …).
        per_layer: draw as many of each site in each layer.
        to, spare: replacement values instead of zero, and how many first positions are left; see ``ablated``.
        resume: a file of measurements, from which an interrupted run goes on; see ``Removals``.
        sets: passed to ``evaluate``: ``malicious``, ``over_rejection``, ``utility``, ``detector``, …

    Examples:
        >>> found = {"top 24": sc.score_units(model, malicious).top(24)}
        >>> table = sc.ablate_units(model, found, controls=1, malicious=malicious)
        >>> table.rows[0].n_units, len(table.rows[0].random_controls)
        (24, 1)
    """
    named_units = _each_of(model, named_units, "by name, such as {'SCU': groups['SCU']}")
    jobs: list[tuple[str, FreezeMask]] = []
    for name, units in named_units.items():
        if not units:
            raise ValueError(f"{name!r} has no units to remove")
        draws = [FreezeMask.random_units(units, seed=seed + k, per_layer=per_layer) for k in range(controls)]
        jobs += [(name, one) for one in (units, *draws)]
    removals = Removals(model, to=to, spare=spare, resume=resume, **sets)
    tell_if_nothing_to_lose(removals.intact.rates, "removing units")
    measured: dict[str, list[Behavior]] = {name: [] for name in named_units}
    for name, units in track(jobs, "ablations", enabled=progress):
        measured[name].append(removals.without(units))
    rows = tuple(
        Ablation(name, named_units[name].n_units(), found[0], tuple(found[1:])) for name, found in measured.items()
    )
    return AblationTable(removals.intact, rows)


@checked
def ablate_groups(
    model: HookedModel,
    groups: UnitGroups,
    *,
    names: Sequence[str] = ("SCU", "UCU", "RU"),
    controls: int = 3,
    per_layer: bool = False,
    seed: int = 0,
    to: UnitValues | None = None,
    spare: int = 0,
    resume: str | Path | None = None,
    progress: bool = False,
    **sets: Unpack[EvaluationOptions],
) -> AblationTable:
    """``ablate_units`` for the groups of a classification; an empty group is left out.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> groups = sc.classify_units(safety, answers, scu=0.01, ucu=0.1, ru=0.1)
        >>> table = sc.ablate_groups(model, groups, names=["SCU"], controls=1, malicious=malicious)
        >>> [row.name for row in table.rows]
        ['SCU']
    """
    if not isinstance(groups, UnitGroups):
        raise ValueError(f"groups are those of classify_units, not a {type(groups).__name__}; of a mask: ablate_units")
    named_units = {name: groups[name] for name in names if groups[name]}
    more: dict[str, Any] = {"to": to, "spare": spare, "resume": resume, "progress": progress, **sets}
    return ablate_units(model, named_units, controls=controls, per_layer=per_layer, seed=seed, **more)


def measure_in(
    model: HookedModel,
    contexts: Mapping[Name, AbstractContextManager[Any]],
    *,
    progress: bool = False,
    **sets: Unpack[EvaluationOptions],
) -> dict[Name, Behavior]:
    """Behaviour of the model inside each named context, and its KL to the model as it is now.

    ``{"SNIP": without_weights(model, mask), "ActSVD": without_directions(model, s, u, rank=8)}`` puts single weights
    and directions beside groups of units, ``scaled`` layers too; each context is entered once and left again.

    Examples:
        >>> contexts = {"scaled": sc.scaled(model, (3, 5), 1.2), "halved": sc.scaled(model, (3, 5), 0.5)}
        >>> measured = sc.units.measure_in(model, contexts, malicious=malicious)
        >>> list(measured)
        ['scaled', 'halved']
    """
    measured: dict[Name, Behavior] = {}
    references = references_of(model, sets) if contexts else {}
    for name, context in track(contexts.items(), "removals", total=len(contexts), enabled=progress):
        with context:
            answers, kl = written(model, **sets), divergences(references, model)
        # Outside, where the model is whole again: it says which of them are language.
        measured[name] = replace(judge_as(answers, model, sets), kl=kl)
    return measured


@checked
def ablation_curve(
    model: HookedModel,
    removed: Mapping[int, FreezeMask],
    *,
    to: UnitValues | None = None,
    spare: int = 0,
    progress: bool = False,
    **sets: Unpack[EvaluationOptions],
) -> dict[int, Behavior]:
    """Behaviour with more and more units removed, by their number: the curve by which a score is judged.

    Args:
        removed: the units to remove by their number; ``{k: groups.top(k) for k in counts}`` for those of highest S − U.
        to, spare: replacement values instead of zero, and how many first positions are left; see ``ablated``.
        sets: passed to ``evaluate``.

    Examples:
        >>> scores = sc.score_units(model, malicious)
        >>> curve = sc.ablation_curve(model, {n: scores.top(n) for n in (8, 32)}, malicious=malicious)
        >>> list(curve)
        [8, 32]
    """
    sizes = _each_of(model, removed, "by their number, such as {8: groups.top(8)}")
    return measure_in(
        model,
        {k: ablated(model, units, to=to, spare=spare) for k, units in sizes.items()},
        progress=progress,
        **sets,
    )


def _each_of(model: HookedModel, masks: Mapping[Name, FreezeMask], how: str) -> dict[Name, FreezeMask]:
    """Masks of this model, each under its key."""
    if not isinstance(masks, Mapping):
        raise ValueError(f"units are given {how}, not as a {type(masks).__name__}")
    return {key: units_of(model, units, f"the units of {key!r}") for key, units in masks.items()}
