"""Requirements held against what was measured: tests where prompts were counted, comparisons where weights were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.one_sided import POWER, above_p, below_p, detectable_change, detectable_share, fall_p, holm
from safecircuits.base.paired import paired_difference
from safecircuits.base.stats import Share
from safecircuits.gate.direction import Estimated
from safecircuits.gate.policy import MEASURES, Policy, Requirement


@dataclass(frozen=True)
class Counted:
    """A measure on prompts, before and after: of each prompt whether it counts, or its number (a KL has no before)."""

    before: Tensor | None
    after: Bool[Tensor, " prompt"] | Float[Tensor, " prompt"]


@dataclass(frozen=True)
class Check:
    """One requirement and what became of it.

    Attributes:
        requirement: in words.
        measure, rule, limit: the same as data.
        before, after: the measure, where it is of both.
        change: after − before with its exact 95 % interval ``low`` to ``high``, of a share; of a cosine ``low`` and
            ``high`` are its own.
        n: prompts that were counted; None for what is not counted on prompts.
        p: of "no worse than tolerated", ``p_corrected`` by Holm for the number of tests.
        passed: whether the requirement is not shown to be broken (tests), or is kept.
        detects: what these prompts show in 80 % of cases: a change of a share, a share, the share of prompts above a
            median, or a cosine.

    Examples:
        >>> found = sc.audit(model, model, malicious=malicious, over_rejection=over_rejection)
        >>> found.checks[0].measure, found.checks[0].p, found.checks[0].passed
        ('malicious_refused', 1.0, True)
    """

    requirement: str
    measure: str
    rule: str
    limit: float
    before: float | None
    after: float
    change: float | None
    low: float | None
    high: float | None
    n: int | None
    p: float | None
    p_corrected: float | None
    passed: bool
    detects: float | None

    @property
    def power(self) -> str:
        """``200 prompts detect a fall of 6.0 points``: in 80 % of cases, where prompts change in one way alone."""
        if self.detects is None or self.n is None:
            return ""
        if self.rule in ("max_fall", "max_rise"):
            what = f"a {self.rule.removeprefix('max_')} of {100 * self.detects:.1f} points"
        elif MEASURES[self.measure][0] in ("cosine", "ratio"):
            what = f"{'a' if self.measure.endswith('left') else 'a cosine of'} {self.detects:.2f}"
        elif MEASURES[self.measure][0] == "nats":
            what = f"{100 * self.detects:.0f} % of prompts above {self.limit:g}"
        else:
            share = 1 - self.detects if self.rule == "at_least" else self.detects
            what = f"a share of {100 * share:.1f} %"
        return f"{self.n} prompts detect {what}"

    def __str__(self) -> str:
        share = MEASURES[self.measure][0] == "share"
        values = [_shown(value, share) for value in (self.before, self.after) if value is not None]
        said = f"{'passed' if self.passed else 'FAILED'}: {self.requirement} ({' → '.join(values)}"
        if self.p_corrected is not None:
            said += f", p = {self.p_corrected:.2g} corrected"
        return f"{said}{f'; {self.power}' if self.power else ''})"


def _shown(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.4g}"


Evidence = Counted | Estimated


def hold(policy: Policy, counted: Mapping[str, Evidence], exact: Mapping[str, float]) -> tuple[Check, ...]:
    """Every requirement of a policy.

    Args:
        counted: measures on prompts by name.
        exact: measures of weights by name.

    Raises:
        ValueError: for a requirement that these prompts could never show to be broken.
    """
    tested = [one for one in policy.requirements if one.is_tested]
    level = policy.false_alarms / max(1, len(tested))
    detects = {one: _detectable(one, counted[one.measure], level) for one in tested}
    raw = {one: _p(one, counted[one.measure]) for one in tested}
    corrected = dict(zip(tested, holm([raw[one] for one in tested]), strict=True))
    found = []
    for one in policy.requirements:
        about = {"requirement": str(one), "measure": one.measure, "rule": one.rule, "limit": one.limit}
        if not one.is_tested:
            value = exact[one.measure]
            kept = value >= one.limit if one.rule == "at_least" else value <= one.limit
            rest = dict.fromkeys(("before", "change", "low", "high", "n", "p", "p_corrected", "detects"))
            found.append(Check(**about, after=value, passed=kept, **rest))  # type: ignore[arg-type]
            continue
        measured = counted[one.measure]
        n = measured.n if isinstance(measured, Estimated) else len(measured.after)
        tests = {"n": n, "p": raw[one], "p_corrected": corrected[one], "detects": detects[one]}
        passed = corrected[one] > policy.false_alarms
        found.append(Check(**about, **_numbers(measured), **tests, passed=passed))  # type: ignore[arg-type]
    return tuple(found)


def _numbers(measured: Evidence) -> dict[str, float | None]:
    """Before, after and the change between."""
    if isinstance(measured, Estimated):
        low, high = measured.interval()
        return {**_NONE, "after": measured.value, "low": low, "high": high}
    if measured.before is None:
        return {**_NONE, "after": float(measured.after.double().median())}
    before, after = Share.of(measured.before).rate, Share.of(measured.after).rate
    change, low, high = paired_difference(measured.after, measured.before)
    return {"before": before, "after": after, "change": change, "low": low, "high": high}


_NONE: Mapping[str, float | None] = dict.fromkeys(("before", "change", "low", "high"))


def _p(one: Requirement, measured: Evidence) -> float:
    if isinstance(measured, Estimated):
        return measured.below_p(one.limit)
    if MEASURES[one.measure][0] == "nats":  # the median is above the limit if more than half of all prompts are
        return above_p(int((measured.after > one.limit).sum()), len(measured.after), 0.5)
    if one.rule in ("max_fall", "max_rise"):
        assert measured.before is not None
        pair = (measured.before, measured.after)
        if one.rule == "max_rise":
            pair = (~pair[0], ~pair[1])
        return fall_p(*pair, tolerated=one.limit)
    hits, n = int(measured.after.sum()), len(measured.after)
    return below_p(hits, n, one.limit) if one.rule == "at_least" else above_p(hits, n, one.limit)


def _detectable(one: Requirement, measured: Evidence, level: float) -> float:
    if isinstance(measured, Estimated):
        return measured.detectable(one.limit, level, POWER)
    return _detects(one, len(measured.after), level)


def _detects(one: Requirement, n: int, level: float) -> float:
    """What ``n`` prompts show; a ValueError if they can show nothing."""
    seen = _seen(one, n, level)
    if seen is None:
        needed = n
        while _seen(one, needed, level) is None:
            needed *= 2
        few = next(count for count in range(needed // 2, needed + 1) if _seen(one, count, level) is not None)
        raise ValueError(
            f"{n} prompts could never show that {one} is broken, at a level of {level:.2g} for each requirement: give "
            f"at least {few}, loosen false_alarms, or require less"
        )
    return seen


def _seen(one: Requirement, n: int, level: float) -> float | None:
    if MEASURES[one.measure][0] == "nats":
        return detectable_share(n, 0.5, level)
    if one.rule in ("max_fall", "max_rise"):
        return detectable_change(n, one.limit, level)
    return detectable_share(n, 1 - one.limit if one.rule == "at_least" else one.limit, level)


def failed(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Those that did not pass."""
    return tuple(check for check in checks if not check.passed)
