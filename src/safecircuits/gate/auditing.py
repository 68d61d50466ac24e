"""A model after training held against the model before: what it refuses, answers and weighs, by a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from safecircuits.base.arguments import checked
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.divergence import KLReference
from safecircuits.behavior.evaluate import UTILITY_TOKENS, answer_tokens, judge
from safecircuits.behavior.generate import generate
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.verdict import notice_needed
from safecircuits.behavior.verdict_table import Verdicts
from safecircuits.gate.checks import Check, Counted, Evidence, failed, hold
from safecircuits.gate.direction import Change, direction_moved
from safecircuits.gate.moved import moved_units, unit_changes
from safecircuits.gate.policy import MEASURES, Policy, read_policy
from safecircuits.gate.same_tokens import require_same_tokens
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.model.sites import HookedModel, ModelShape, has_units
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.results.result import Result
from safecircuits.training.freeze import frozen_digest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


SETS = ("malicious", "over_rejection", "utility", "normal")


@dataclass(frozen=True)
class Audit(Result):
    """What ``audit`` found: whether a changed model still meets a policy.

    Attributes:
        models: the two models that were compared, before and after.
        checks: every requirement of the policy and what became of it.
        before, after: what each model refuses and gets right.
        policy: as a policy file holds it.
        numbers: what else was measured: of weights ``units_moved``, ``units_change``, ``frozen_identical``; of the
            refusal direction its layer, and what a random one of its length does (``…_refused_random_before``, …).
        digests: SHA-256 of what the mask freezes, before and after; empty without a mask.

    Examples:
        >>> found = sc.audit(model, sc.load_model("unaligned"), malicious=malicious, over_rejection=over_rejection)
        >>> found.passed, found.failed[0].requirement
        (False, 'malicious_refused falls by at most 2 points')
    """

    models: tuple[str, str]
    checks: tuple[Check, ...]
    before: Behavior
    after: Behavior
    policy: Mapping[str, Any]
    numbers: Mapping[str, float]
    digests: Mapping[str, str]

    @property
    def answers(self) -> dict[str, dict[str, Verdicts]]:
        """The completions that were judged for refusal, with their verdicts, by model and set."""
        models = {"before": self.before, "after": self.after}
        return {
            name: {of: one for of, one in found.answers.items() if of != "utility"} for name, found in models.items()
        }

    @property
    def passed(self) -> bool:
        """Whether no requirement is shown to be broken."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The requirements that are broken."""
        return failed(self.checks)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        n = len(self.checks)
        if self.passed:
            return f"passed: none of the {n} requirements is shown to be broken"
        names = ", ".join(check.measure for check in self.failed)
        return f"FAILED: {len(self.failed)} of the {n} requirements broken ({names})"

    def to_frame(self) -> pd.DataFrame:
        """One row a requirement."""
        import pandas as pd

        return pd.DataFrame([{**asdict(check), "power": check.power} for check in self.checks])

    def record(self) -> dict[str, Any]:
        """As JSON: the verdict, the checks, the rates of both models, and what was measured of weights."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "models": {"before": self.models[0], "after": self.models[1]},
            "policy": dict(self.policy),
            "checks": [{**asdict(check), "power": check.power} for check in self.checks],
            "before": self.before.record(),
            "after": self.after.record(),
            "weights": {name: value for name, value in self.numbers.items() if not name.startswith("direction")},
            "direction": {name: value for name, value in self.numbers.items() if name.startswith("direction")},
            "frozen_digest": dict(self.digests),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """What both models refuse and get right, with 95 % intervals."""
        from safecircuits.plots.rates import plot_behavior

        if not self.before.shares:
            raise ValueError("no rates were measured, of which there could be a figure")
        return plot_behavior({"before": self.before, "after": self.after}, ax=ax)


@checked
def audit(
    before: HookedModel | str | Path,
    after: HookedModel | str | Path,
    policy: Policy | Mapping[str, Any] | str | Path | None = None,
    *,
    malicious: PromptSet | Sequence[str] | None = None,
    over_rejection: PromptSet | Sequence[str] | None = None,
    utility: PromptSet | None = None,
    normal: PromptSet | Sequence[str] | None = None,
    mask: FreezeMask | None = None,
    detector: str | RefusalDetector = "opening",
    max_new_tokens: int | None = None,
    refusal_tokens: int | None = None,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
) -> Audit:
    """Compare a model after training with the model before, by a policy of what it must still do.

    Both answer the same prompts greedily. A fall or rise of a share beyond what is tolerated is tested prompt by prompt
    (McNemar's exact test), bounds by exact binomial tests, a median by the sign test, all one-sided and corrected for
    their number (Holm): a model that has changed only as tolerated fails with at most the policy's ``false_alarms``.
    A cosine of directions is tested by its error over prompts (jackknife, Student's t), which holds that about.
    Weights are compared as they are. Passing is no proof: each check says what its prompts could have detected.

    Args:
        before, after: models, or what ``load_model`` takes by name. Both are in memory.
        policy: a ``Policy``, a mapping or a YAML or TOML file; ``Policy.usual`` of what is given otherwise.
        malicious, over_rejection, utility, detector, max_new_tokens, refusal_tokens, template, system, max_tokens: as
            in ``evaluate``. What the model before finds to be no language is incoherent, too.
        normal: harmless prompts beside the malicious ones, for the refusal direction: what became of it, and, where the
            policy asks, what taking it out or adding it does to both models, beside a random one (eight more sets of
            answers).
        mask: the safety units; whether they moved, and whether they are bit-identical, is measured of these.

    Raises:
        ValueError: for models with different tokenizers or templates, a policy that needs prompts or a mask that are
            not given, or that these prompts could never show to be broken.
        JudgingError: a ValueError, if the detector raises.

    Examples:
        >>> limits = {"measures": {"malicious_refused": {"max_fall": 0.1}, "units_moved": {"at_most": 0}}}
        >>> found = sc.audit(model, model, limits, malicious=malicious)
        >>> print(found)
        passed: none of the 2 requirements is shown to be broken
    """
    sets = {
        name: as_prompt_set(given, name)
        for name, given in zip(SETS, (malicious, over_rejection, utility, normal), strict=True)
        if given is not None
    }
    given = [*sets, *(["mask"] if mask is not None else [])]
    if not given or given == ["normal"]:
        raise ValueError("nothing to audit: give malicious=, over_rejection=, utility= or mask=")
    chosen = Policy.usual(given) if policy is None else read_policy(policy)
    require_measurable(chosen, given)
    if "utility" in sets:
        sets["utility"].require_responses()
    models = (_name(before, "before"), _name(after, "after"))
    old, new = (load_model(one) if isinstance(one, str | Path) else one for one in (before, after))
    require_same_tokens(old, new, list(sets.values()), template, system)
    n_judged = 2 * sum(len(sets[name]) for name in ("malicious", "over_rejection") if name in sets)
    needed = refusal_tokens or max_new_tokens or (notice_needed(detector, n_judged) if n_judged else 1)
    tokens = dict.fromkeys(sets, needed)
    tokens["utility"] = answer_tokens(max_new_tokens or UTILITY_TOKENS)
    options: dict[str, Any] = {"template": template, "system": system}
    behaviors = []
    for model in (old, new):
        written = {
            name: generate(model, one, max_new_tokens=tokens[name], max_tokens=max_tokens, progress=progress, **options)
            for name, one in sets.items()
            if name != "normal"
        }
        behaviors.append(judge(written, detector, unchanged=old, **options))
    counted: dict[str, Evidence] = {}
    for name, (kind, needs, _) in MEASURES.items():
        if needs in sets and needs != "normal" and kind == "share":
            counted[name] = Counted(*(_counts(name, behavior) for behavior in behaviors))
    for one in chosen.requirements:
        if one.measure.endswith("_kl"):
            reference = KLReference.of(old, sets[one.needs], n_tokens=1, max_tokens=max_tokens, **options)
            counted[one.measure] = Counted(None, reference.divergence(new, max_tokens=max_tokens).first)
    numbers, digests = _weights(old, new, mask, chosen)
    if {"malicious", "normal"} <= sets.keys():
        asked = {one.measure for one in chosen.requirements}
        changes = [what for what in get_args(Change) if f"direction_{what}_refused" in asked]
        moved = direction_moved(
            old,
            new,
            sets["malicious"],
            sets["normal"],
            changes=changes,
            detector=detector,
            refusal_tokens=tokens["malicious"],
            max_tokens=max_tokens,
            progress=progress,
            **options,
        )
        counted |= {"direction_cosine": moved.cosine, "direction_left": moved.left}
        for what in changes:
            counted[f"direction_{what}_refused"] = Counted(*moved.refused[what, "direction"])
        numbers |= moved.numbers()
    checks = hold(chosen, counted, numbers)
    return Audit(models, checks, behaviors[0], behaviors[1], chosen.record(), numbers, digests)


def require_measurable(policy: Policy, given: Sequence[str]) -> None:
    """A ValueError for a requirement whose prompts, or whose mask, are not among ``given``."""
    for one in policy.requirements:
        for needs in (one.needs, *(["malicious"] if one.needs == "normal" else [])):
            if needs and needs not in given:
                option = needs.replace("_", "-")
                raise ValueError(f"the policy requires {one.measure!r}: give {needs}= (--{option})")


def _name(model: Any, otherwise: str) -> str:
    return str(model) if isinstance(model, str | Path) else otherwise


def _counts(measure: str, behavior: Behavior) -> torch.Tensor:
    """Which prompts count in a share."""
    of = MEASURES[measure][1]
    if measure.endswith("_incoherent"):
        return behavior.answers[of].are("incoherent")
    return behavior.counted[measure]


def _weights(
    old: HookedModel, new: HookedModel, mask: FreezeMask | None, policy: Policy
) -> tuple[dict[str, float], dict[str, str]]:
    """What the policy says of weights, and what can be said of a mask."""
    numbers: dict[str, float] = {}
    digests: dict[str, str] = {}
    asked = {one.measure for one in policy.requirements}
    if mask is not None:
        mask = mask.on(old)
        digests = {"before": frozen_digest(old, mask), "after": frozen_digest(new, mask)}
        numbers["frozen_identical"] = float(digests["before"] == digests["after"])
    if mask is not None or asked & {"units_moved", "units_change"}:
        numbers |= moved_units(unit_changes(old, new), mask)
    if lacking := sorted(asked & {"units_moved", "units_change"} - set(numbers)):
        shape = ModelShape.of(old)
        none = not any(has_units(old, "mlp", layer) for layer in range(shape.n_layers))
        raise ValueError(
            f"the policy requires {lacking[0]!r}, but {'the model has' if none else 'the mask names'} no units whose "
            "weights could be compared; require frozen_identical of a mask of whole layers"
        )
    return numbers, digests
