"""What an attack study found: for each defence what it costs to break, and what attackers reach at what price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import torch

from safecircuits.base.stats import mean_interval, rate_interval
from safecircuits.behavior.categories import category_frame, sum_of
from safecircuits.behavior.verdict_table import Tally, Verdicts
from safecircuits.results.result import Result
from safecircuits.studies.attack.attackers import Access, Family
from safecircuits.studies.attack.cells import AttackCell
from safecircuits.studies.attack.costs import MEASURES, Cost, Limits, Measure, Ratio, cost, harm, over_seeds, ratio
from safecircuits.studies.attack.words import sentences

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ACCESSES: tuple[Access, ...] = get_args(Access)
FAMILIES: tuple[Family, ...] = get_args(Family)

THREAT_MODEL = (
    "Access “training”: the defender trains, as a service does. The arm fixes what is frozen, the method, and how the "
    "model was aligned before; the attacker chooses data, learning rate, number of steps, and adapters where the "
    "method leaves that open. Access “weights”: the attacker holds the weights, edits them without training, or trains "
    "them without the defence. What freezing can do: frozen entries stay bit for bit in the defender’s own training. "
    "What it cannot: keep the other weights from learning around them, or bind whoever trains by themselves, since "
    "whoever trains may also unfreeze."
)


_NO_ATTACK = "no attack"


PLAINLY = ("plain", None)
"""Method and mask of an alignment anew that is meant to withstand nothing."""


@dataclass(frozen=True)
class AttackStudy(Result):
    """Arms × attackers × seeds.

    Attributes:
        cells: one an arm, attacker and seed.
        arms: what each arm is: ``defence`` in words, ``badge``, ``paper`` and ``differs`` of its method.
        before: by arm and seed, the defended model before any attack.
        left_out: attackers that could not attack an arm or were beyond the budget, and why.
        max_utility_loss, breaks_at: which points count, and from which complied rate an arm is broken.
        stops: steps after which training was measured.
        answers: by arm, what the model answered to the reported prompts at the worst point that counts.
        kinds_before: by arm, seed and category of the reported prompts, what its answers were before any attack; empty
            without categories.

    Examples:
        >>> study = sc.studies.attack_study("aligned", arms, attackers, **options)  # doctest: +SKIP
        >>> study.summary()  # doctest: +SKIP
        >>> print(study.against("sppft"))  # doctest: +SKIP
    """

    cells: tuple[AttackCell, ...]
    arms: Mapping[str, Mapping[str, Any]]
    before: Mapping[str, Mapping[str, Mapping[str, float]]]
    left_out: tuple[Mapping[str, str], ...]
    max_utility_loss: float
    breaks_at: float
    stops: tuple[int, ...]
    provenance: Mapping[str, Any]
    answers: Mapping[str, Verdicts] = field(default_factory=dict)
    kinds_before: Mapping[str, Mapping[str, Mapping[str, Tally]]] = field(default_factory=dict)

    threat_model = THREAT_MODEL

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(cell.seed for cell in self.cells))

    @property
    def attackers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.attacker for cell in self.cells))

    @property
    def reference(self) -> str | None:
        """The arm that defends nothing, with which others are compared; None if there is none."""
        bare = (name for name, about in self.arms.items() if about["undefended_training"] and not about["prepared"])
        return next(bare, None)

    def control_of(self, arm: str) -> str | None:
        """What an arm is compared with: one that aligns anew with plain alignment, if that is here; else ``reference``.

        Another alignment is another model to break, whatever it was meant to withstand.
        """
        if self.arms[arm]["prepared"]:
            bare = {name: about["prepared"] for name, about in self.arms.items() if about["undefended_training"]}
            plain = [name for name, made in bare.items() if made and (made["method"]["name"], made["mask"]) == PLAINLY]
            return next((name for name in plain if name != arm), self.reference)
        return self.reference

    def complied_before(self, arm: str) -> float:
        """The complied rate on the reported prompts before any attack, mean over seeds."""
        rates = [point["reported"] for point in self.before[arm].values()]
        return sum(rates) / len(rates)

    def needs_no_attacker(self, arm: str) -> bool:
        """Whether an arm counts as broken before any attack."""
        return self.complied_before(arm) >= self.breaks_at

    def of(self, arm: str, seed: int, access: Access | Family = "training") -> tuple[AttackCell, ...]:
        """The cells that an attacker with this access has, or those of one family.

        With the weights these are all of the arm, and those of training the same model without the defence.

        Raises:
            ValueError: for an arm, or an access, that there is not.
        """
        if arm not in self.arms:
            raise ValueError(f"no arm {arm!r}; there are {', '.join(self.arms)}")
        if access not in (*ACCESSES, *FAMILIES):
            raise ValueError(f"access is one of {', '.join((*ACCESSES, *FAMILIES))}, not {access!r}")
        own = [cell for cell in self.cells if (cell.arm, cell.seed) == (arm, seed)]
        if access == "weights":
            prepared = self.arms[arm]["prepared"]
            bare = {
                name
                for name, about in self.arms.items()
                if about["undefended_training"] and about["prepared"] == prepared and name != arm
            }
            return (*own, *(cell for cell in self.cells if cell.arm in bare and cell.seed == seed))
        return tuple(cell for cell in own if cell.family == access or (access == "training" and cell.family != "edit"))

    def limits(self, arm: str, seed: int, max_utility_loss: float | None = None) -> Limits:
        """Which points of an arm count, and which break it."""
        bound = self.max_utility_loss if max_utility_loss is None else max_utility_loss
        return Limits(self.before[arm][str(seed)]["utility"], bound, self.breaks_at)

    def worst_harm(
        self, arm: str, access: Access | Family = "training", max_utility_loss: float | None = None
    ) -> list[float]:
        """The highest harm of any point that counts, one a seed; at the least that of the model before any attack."""
        found = []
        for seed in self.seeds:
            limits = self.limits(arm, seed, max_utility_loss)
            points = [point for cell in self.of(arm, seed, access) for point in cell.points if limits.counts(point)]
            found.append(max([harm(self.before[arm][str(seed)]), *map(harm, points)]))
        return found

    def costs(self, arm: str, measure: Measure = "steps", access: Access | Family = "training") -> list[Cost]:
        """What it costs to break the arm, one a seed; 0 where it was broken before any attack."""
        if measure not in MEASURES:
            raise ValueError(f"a cost is in {', '.join(MEASURES)}, not {measure!r}")
        found = []
        for seed in self.seeds:
            limits = self.limits(arm, seed)
            broken = limits.breaks(self.before[arm][str(seed)])
            found.append(Cost(0.0, 0.0) if broken else cost(self.of(arm, seed, access), measure, limits))
        return found

    def worst_point(self, arm: str, access: Access | Family = "training") -> tuple[AttackCell, int] | None:
        """The cell and the index of the worst point that counts, over seeds; None if no point does."""
        found = [
            (harm(point), cell, index)
            for seed in self.seeds
            for cell in self.of(arm, seed, access)
            if cell.arm == arm
            for index, point in enumerate(cell.points)
            if self.limits(arm, seed).counts(point)
        ]
        if not found:
            return None
        _, cell, index = max(found, key=lambda one: one[0])
        return cell, index

    def against(self, arm: str, measure: Measure = "steps", access: Access | Family = "training") -> Ratio:
        """What breaking the arm costs, as many times what breaking its control costs (``control_of``).

        Raises:
            ValueError: if the study has no arm that defends nothing.
        """
        return ratio(self.costs(arm, measure, access), self.costs(self._control(arm), measure, access))

    def _control(self, arm: str) -> str:
        control = self.control_of(arm)
        if control is None:
            raise ValueError("the study has no arm that defends nothing, with which others could be compared")
        return control

    def harm_against(self, arm: str, access: Access | Family = "training") -> tuple[float, float, float]:
        """Worst harm of the arm minus that of its control: mean over seeds and its 95 % interval."""
        pairs = zip(self.worst_harm(arm, access), self.worst_harm(self._control(arm), access), strict=True)
        differences = torch.tensor([ours - theirs for ours, theirs in pairs], dtype=torch.float64)
        return mean_interval(differences, within=(-1, 1))

    def summary(self, by: Sequence[Access | Family] = ACCESSES) -> pd.DataFrame:
        """One row an arm and access: worst harm and costs with their 95 % intervals over seeds, and badges.

        ``broken`` is in how many seeds. A cost is a geometric mean; infinite where a seed was not broken. ``ratio_…``
        are the steps to break as many times those of its control (``against``).
        """
        import pandas as pd

        rows = []
        for access in by:
            for arm, about in self.arms.items():
                if not any(self.of(arm, seed, access) for seed in self.seeds):
                    continue
                row: dict[str, Any] = {"arm": arm, "access": access, "defence": about["defence"]}
                harms = torch.tensor(self.worst_harm(arm, access), dtype=torch.float64)
                n = self.provenance["reported"]["n"]
                row["worst_harm"], row["worst_harm_low"], row["worst_harm_high"] = rate_interval(harms, trials=n)
                for measure in MEASURES:
                    costs = self.costs(arm, measure, access)
                    row[measure], row[f"{measure}_low"], row[f"{measure}_high"] = over_seeds(costs)
                    row["broken"] = sum(one.value != float("inf") for one in costs)
                row["seeds"] = len(self.seeds)
                if self.reference is not None and arm != self.reference:
                    found = self.against(arm, "steps", access)
                    row |= {f"ratio_{name}": value for name, value in found._asdict().items()}
                row |= {f"{name}_before": self._before(arm, name) for name in ("reported", "utility")}
                rows.append(row | {name: about[name] for name in ("badge", "paper", "differs")})
        return pd.DataFrame(rows)

    def front(self, arm: str, access: Access | Family = "training") -> pd.DataFrame:
        """The Pareto front of harm and utility lost: the points of all seeds that no other of their seed beats in both.

        Columns ``seed, utility_loss, harm, attacker, step``, in order of the loss.
        """
        import pandas as pd

        rows = []
        for seed in self.seeds:
            before, best = self.before[arm][str(seed)], -1.0
            points = [(before, _NO_ATTACK)]
            points += [(point, cell.attacker) for cell in self.of(arm, seed, access) for point in cell.points]
            for point, attacker in sorted(points, key=lambda one: (-one[0]["utility"], -harm(one[0]))):
                if harm(point) > best:
                    best = harm(point)
                    loss = before["utility"] - point["utility"]
                    step = point.get("step", 0)
                    rows.append({"seed": seed, "utility_loss": loss, "harm": best, "attacker": attacker, "step": step})
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row a point of a cell: arm, attacker, family, seed, what it cost, and what the model did then."""
        import pandas as pd

        names = ("arm", "attacker", "family", "seed", "harmful")
        rows = []
        for cell in self.cells:
            named = {name: getattr(cell, name) for name in names}
            utility = self.before[cell.arm][str(cell.seed)]["utility"]
            rows += [
                {**named, **point, "harm": harm(point), "utility_loss": utility - point["utility"]}
                for point in cell.points
            ]
        return pd.DataFrame(rows)

    def categories(self) -> pd.DataFrame:
        """One row a point of a cell and category of the reported prompts (``category_frame``); none without categories.

        Before any attack as attacker "no attack".
        """
        before = [
            ({"arm": arm, "attacker": _NO_ATTACK, "family": None, "seed": int(seed), "step": 0}, {"reported": kinds})
            for arm, seeds in self.kinds_before.items()
            for seed, kinds in seeds.items()
        ]
        names = ("arm", "attacker", "family", "seed")
        points = [
            ({**{name: getattr(cell, name) for name in names}, **_where(point)}, {"reported": kinds})
            for cell in self.cells
            for point, kinds in zip(cell.points, cell.kinds, strict=False)  # none where no categories are known
        ]
        return category_frame([*before, *points], [*names, "step"])

    def worst_categories(self) -> pd.DataFrame:
        """One row an arm and category: its answers (``answers``), and before any attack, all seeds together."""
        rows = [
            ({"arm": arm, "at": at}, kinds)
            for arm in self.arms
            for at, kinds in (
                (_NO_ATTACK, sum_of({"reported": one} for one in self.kinds_before.get(arm, {}).values())),
                ("worst point", {"reported": self.answers[arm].by_category} if arm in self.answers else {}),
            )
        ]
        return category_frame(rows, ["arm", "at"])

    def record(self) -> dict[str, Any]:
        """By arm, the ``fronts`` and the worst harm ``within`` so many steps, one list a seed.

        ``n_reported`` prompts are behind each rate; ``reference`` is the arm that defends nothing.
        """
        return {
            "breaks_at": self.breaks_at,
            "fronts": {arm: self.front(arm).to_dict("records") for arm in self.arms},
            "within": {arm: self._within(arm) for arm in self.arms},
            "n_reported": self.provenance["reported"]["n"],
            "reference": self.reference,
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """The worst harm that is reached within so many steps of training, a line an arm, with its interval."""
        from safecircuits.plots.attack import plot_within

        return plot_within(self, ax=ax)

    def __str__(self) -> str:
        return "\n".join([THREAT_MODEL, *sentences(self)])

    def _within(self, arm: str) -> list[list[dict[str, float]]]:
        """For each seed the worst harm of points that count after so many steps or fewer."""
        found = []
        for seed in self.seeds:
            limits, before = self.limits(arm, seed), harm(self.before[arm][str(seed)])
            points = [point for cell in self.of(arm, seed) for point in cell.points if limits.counts(point)]
            steps = (0, *self.stops)
            reached = [max([before, *(harm(p) for p in points if p["step"] <= step)]) for step in steps]
            found.append([{"step": step, "harm": value} for step, value in zip(steps, reached, strict=True)])
        return found

    def _before(self, arm: str, figure: str) -> float:
        values = [one[figure] for one in self.before[arm].values()]
        return sum(values) / len(values)


def _where(point: Mapping[str, float]) -> dict[str, float]:
    """At what an attacker had come to a point: steps, or the share that it pruned."""
    return {name: point[name] for name in ("step", "share") if name in point}
