"""Choose the groups' sizes by what removing them does: sweep the share and stop on behaviour (SSAH, Table 1).

The paper scans pruning ratios from high to low and decides by the degradation of utility and safety; how far either may
fall it does not say, so both thresholds are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.behavior.categories import category_frame
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.behavior.measured import Behavior
from safecircuits.hooks.ablate import UnitValues
from safecircuits.model.sites import HookedModel
from safecircuits.results.result import Result
from safecircuits.units.groups import Normalisation, ShareOf, UnitGroups, classify_units
from safecircuits.units.removals import Removals
from safecircuits.units.scores import UnitScores

if TYPE_CHECKING:
    import pandas as pd

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
_SWEPT = ("SCU", "UCU", "RU")


@dataclass(frozen=True)
class SweptShare:
    """What the model does without the ``share`` of all units that ``group`` would have."""

    group: str
    share: float
    n_units: int
    behavior: Behavior
    accepted: bool


@dataclass(frozen=True)
class ShareSweep(Result):
    """The shares that were tried, those that were accepted, and the groups they make.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> found = sc.units.sweep_shares(
        ...     model, safety, answers, shares=(0.05,), malicious=malicious.take(4), utility=utility.take(4)
        ... )
        >>> sorted(found.shares)
        ['RU', 'SCU', 'UCU']
    """

    intact: Behavior
    points: tuple[SweptShare, ...]
    shares: Mapping[str, float]
    """By group; 0 where no share did what the group's name says."""
    groups: UnitGroups
    provenance: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a share that was tried."""
        import pandas as pd

        rows = [
            {
                "group": p.group,
                "share": p.share,
                "units": p.n_units,
                **p.behavior.figures,
                **p.behavior.kl_means,
                "accepted": p.accepted,
            }
            for p in self.points
        ]
        return pd.DataFrame(rows)

    def categories(self) -> pd.DataFrame:
        """One row a share, ``intact`` first, set and category of its prompts (``category_frame``)."""
        intact = ({"group": "intact", "share": 0.0}, self.intact.by_category)
        swept = [({"group": p.group, "share": p.share}, p.behavior.by_category) for p in self.points]
        return category_frame([intact, *swept], ["group", "share"])


@checked
def sweep_shares(
    model: HookedModel,
    safety_scores: UnitScores,
    utility_scores: UnitScores,
    *,
    shares: Sequence[float] = SHARES,
    scan: Literal["down", "up"] = "down",
    fall: float = 0.5,
    kept: float = 0.05,
    normalize: Normalisation = "none",
    share_of: ShareOf = "units",
    to: UnitValues | None = None,
    spare: int = 0,
    resume: str | Path | None = None,
    progress: bool = False,
    **sets: Unpack[EvaluationOptions],
) -> ShareSweep:
    """Find the shares of SCU, UCU and RU whose removal does what their names say.

    SCU: refusal falls and utility stays. UCU: utility falls and refusal stays. RU: both stay. The groups are swept in
    this order, each beside those already cut.

    Args:
        safety_scores, utility_scores, normalize, share_of: as in ``classify_units``.
        shares: those to try.
        scan: ``"down"`` takes the largest share that does it, as the paper scans; ``"up"`` the smallest.
        fall: the part of a rate that must be lost for it to have fallen.
        kept: how much of a rate (of 1) may be lost for it to have stayed.
        to, spare: replacement values instead of zero, and how many first positions are left; see ``ablated``.
        resume: a file of measurements; see ``Removals``.
        sets: passed to ``evaluate``; ``malicious`` and ``utility`` are required.

    Raises:
        ValueError: for missing sets, shares or limits outside 0..1, and a model that refuses nothing or has no utility,
            which cannot fall.

    Examples:
        >>> safety, answers = (sc.score_units(model, prompts) for prompts in (malicious, utility))
        >>> found = sc.units.sweep_shares(
        ...     model, safety, answers, shares=(0.05,), malicious=malicious.take(4), utility=utility.take(4)
        ... )
        >>> groups = found.groups
    """
    if sets.get("malicious") is None or sets.get("utility") is None:
        raise ValueError("a sweep stops on behaviour: give malicious= and utility= prompts")
    outside = [share for share in shares if not 0 < share <= 1]
    if outside or not shares:
        raise ValueError(f"shares are between 0 and 1, not {outside[0] if outside else list(shares)}")
    if scan not in ("down", "up"):
        raise ValueError(f"scan is 'down' or 'up', not {scan!r}")
    for name, limit in {"fall": fall, "kept": kept}.items():
        if not 0 <= limit <= 1:
            raise ValueError(f"{name} is between 0 and 1, not {limit}")
    removals = Removals(model, to=to, spare=spare, resume=resume, **sets)
    before = removals.intact.rates
    for rate, what in {"malicious_refused": "refuses nothing", "utility": "answers nothing right"}.items():
        if not before[rate]:
            raise ValueError(f"the intact model {what}, so a sweep cannot see what its removals cost")

    def fell(behavior: Behavior, rate: str) -> bool:
        return behavior.rates[rate] <= (1 - fall) * before[rate]

    def stayed(behavior: Behavior, rate: str) -> bool:
        return behavior.rates[rate] >= before[rate] - kept - 1e-9

    rules = {
        "SCU": lambda b: fell(b, "malicious_refused") and stayed(b, "utility"),
        "UCU": lambda b: fell(b, "utility") and stayed(b, "malicious_refused"),
        "RU": lambda b: stayed(b, "malicious_refused") and stayed(b, "utility"),
    }
    chosen = dict.fromkeys(_SWEPT, 0.0)
    points: list[SweptShare] = []
    order = sorted(set(shares), reverse=scan == "down")

    def groups_with(**changed: float) -> UnitGroups:
        wanted = {**chosen, **changed}
        return classify_units(
            safety_scores,
            utility_scores,
            scu=wanted["SCU"],
            ucu=wanted["UCU"],
            ru=wanted["RU"],
            normalize=normalize,
            share_of=share_of,
        )

    for name in track(_SWEPT, "share sweep", enabled=progress):
        for share in order:
            if sum({**chosen, name: share}.values()) > 1:
                continue
            units = groups_with(**{name: share})[name]
            if not units:
                continue
            behavior = removals.without(units)
            accepted = bool(rules[name](behavior))
            points.append(SweptShare(name, share, units.n_units(), behavior, accepted))
            if accepted:
                chosen[name] = share
                break
    settings = {"scan": scan, "fall": fall, "kept": kept, "tried": list(shares)}
    return ShareSweep(removals.intact, tuple(points), chosen, groups_with(), settings)
