"""The refusal direction: candidates by difference in means, one chosen on held-out prompts, with controls beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.stats import mean_interval
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.direction.accuracy import balanced_accuracy, left_out_accuracy
from safecircuits.direction.filters import DirectionFilters
from safecircuits.direction.means import LEAST, MeanDirections, directions_of, require_apart
from safecircuits.direction.prompt_states import prompt_states
from safecircuits.direction.selection_scores import (
    Ablation,
    DirectionScorer,
    ScoredPrompts,
    controls_of,
    refusing_tokens,
)
from safecircuits.direction.vector import Direction
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Rule = Literal["published", "bypass", "accuracy", "category"]
SCORES = ("bypass", "induce", "kl")


@dataclass(frozen=True)
class RefusalDirection(Result):
    """Every candidate with its scores on held-out prompts, the one that the rule chose, and what controls do.

    Attributes:
        bypass, induce, kl: by layer and position (those of ``directions``); NaN where a candidate was not tried. Lower
            bypass is better; all at the first answer token (``refusal_score`` in log odds, KL in nats).
        baseline: refusal score of the intact model on held-out ``harmful`` and ``harmless`` prompts.
        accuracy: share of held-out prompts that fall on their side of the midpoint of the two means, both kinds alike.
        category: the same of harmful prompts of a category that the direction was made without, mean of categories; no
            entries where prompts have no categories.
        layer, position: what the rule chose; None if it keeps no candidate.
        scores: of the chosen one, mean with its 95 % interval over prompts, by score.
        controls: by kind (``random``: equal length; ``shuffled``: of shuffled labels, put to equal length), the
            scores of each draw at the chosen place.

    Examples:
        >>> found = sc.refusal_direction(model, malicious, normal, rule="bypass", ablation="affine", controls=1)
        >>> found.chosen.layer == found.layer
        True
    """

    directions: MeanDirections
    bypass: Float[Tensor, "layer position"]
    induce: Float[Tensor, "layer position"]
    kl: Float[Tensor, "layer position"]
    baseline: Mapping[str, float]
    accuracy: Float[Tensor, "layer position"]
    category: Float[Tensor, "*layer position"]
    rule: Rule
    ablation: Ablation
    filters: DirectionFilters
    layer: int | None
    position: int | None
    scores: Mapping[str, tuple[float, float, float]]
    controls: Mapping[str, Float[Tensor, "draws score"]]
    provenance: dict[str, Any]
    interval: Float[Tensor, "layer position two"] | None = None
    """95 % intervals of ``bypass`` over held-out prompts; None in results of earlier versions."""

    @property
    def chosen(self) -> Direction:
        """The direction that the rule chose; a ValueError that says what to try next where it keeps none."""
        if self.layer is None or self.position is None:
            raise ValueError(self.verdict)
        return self.directions.at(self.layer, self.position)

    def choose(self, rule: Rule) -> Direction:
        """The direction by another rule, from the scores that are there; a ValueError where it keeps none."""
        place = _best(self, rule)
        if place is None:
            raise ValueError(f"the rule {rule!r} keeps none of the candidates; {self._next(rule)}")
        return self.directions.at(*place)

    @property
    def kept(self) -> Bool[Tensor, "layer position"]:
        """Which candidates pass all three filters."""
        return torch.stack(list(self._passes().values())).all(0)

    def _passes(self) -> dict[str, Tensor]:
        f = self.filters
        shallow = f.shallow(len(self.kl))[:, None].expand_as(self.kl)
        return {"kl": self.kl <= f.kl, "induce": self.induce >= f.induce, "depth": shallow & ~self.bypass.isnan()}

    @property
    def verdict(self) -> str:
        """What was found, or which filters left nothing, in one sentence."""
        if self.layer is None:
            tried, passed = ~self.bypass.isnan(), self._passes()
            lost = {name: int((tried & ~ok).sum()) for name, ok in passed.items()}
            return (
                f"the rule {self.rule!r} keeps none of {int(tried.sum())} candidates: {lost['kl']} have a KL above "
                f"{self.filters.kl:g}, {lost['induce']} do not induce refusal, {lost['depth']} are too late a layer's; "
                f"{self._next(self.rule)}"
            )
        said = ", ".join(
            f"{name} {mean:.2f} [{low:.2f}, {high:.2f}]" for name, (mean, low, high) in self.scores.items()
        )
        return (
            f"after layer {self.layer} at token {self.position} by the rule {self.rule!r}, {self.ablation} ablation: "
            f"{said}; intact refusal score {self.baseline['harmful']:.2f} on harmful and "
            f"{self.baseline['harmless']:.2f} on harmless prompts"
        )

    @property
    def caveat(self) -> str:
        """What to hold against it first: a control that does as well, or that the prompts that chose it score it."""
        if self.layer is None:
            return ""
        bypass = self.scores["bypass"]
        for kind, draws in self.controls.items():
            if len(draws) and float(draws[:, 0].min()) <= bypass[2]:
                return f"a {kind} direction lowers refusal to within its 95 % interval"
        tried = int((~self.bypass.isnan()).sum())
        return f"its scores are of the prompts by which it was chosen among {tried}: judge it on others"

    def _next(self, rule: str) -> str:
        if rule == "published" and self.ablation == "zero":
            return (
                "next: ablation='affine', which leaves what harmless prompts have of a direction, since having none "
                "may be a reason to refuse; then choose('bypass'), which has no filter of KL"
            )
        return "next: choose('bypass'), without filters of KL and induction, or choose('accuracy'), without ablation"

    def to_frame(self) -> pd.DataFrame:
        """One row a candidate, the best bypass first."""
        import pandas as pd

        rows = []
        for layer in range(len(self.bypass)):
            for column, position in enumerate(self.directions.positions):
                row: dict[str, Any] = {"layer": layer, "position": position, "token": self.directions.tokens[column]}
                names = (*SCORES, "accuracy", *(("category",) if self.category.numel() else ()))
                row |= {name: float(getattr(self, name)[layer, column]) for name in names}
                rows.append(row | {"kept": bool(self.kept[layer, column])})
        return pd.DataFrame(rows).sort_values("bypass", ignore_index=True)

    def record(self) -> dict[str, Any]:
        """The chosen ``layer`` and ``position``, ``scores``, ``controls``, and every score by layer and position."""
        by_place = {name: getattr(self, name).numpy() for name in (*SCORES, "accuracy")}
        return {
            "layer": self.layer,
            "position": self.position,
            "rule": self.rule,
            "ablation": self.ablation,
            "baseline": dict(self.baseline),
            "chosen": {name: list(values) for name, values in self.scores.items()},
            "controls": {name: values.numpy() for name, values in self.controls.items()},
            "positions": self.directions.positions,
            "tokens": self.directions.tokens,
            **by_place,
        } | ({} if self.interval is None else {"bypass_interval": self.interval.numpy()})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Bypass by layer at each position, what the intact model has, and the chosen one marked."""
        from safecircuits.plots.refusal_direction import plot_bypass

        return plot_bypass(self, ax=ax)

    def __str__(self) -> str:
        return self.verdict


@checked
def refusal_direction(
    model: HookedModel,
    harmful: PromptSet | Sequence[str],
    harmless: PromptSet | Sequence[str],
    *,
    held_out: tuple[PromptSet, PromptSet] | None = None,
    rule: Rule = "published",
    ablation: Ablation = "zero",
    filters: DirectionFilters | None = None,
    layers: Sequence[int] | None = None,
    positions: tuple[int, ...] | None = None,
    refusal_tokens: Sequence[int] | None = None,
    controls: int = 3,
    detector: str | RefusalDetector = "opening",
    template: str = "auto",
    system: str | None = None,
    seed: int = 0,
    max_tokens: int | None = None,
    progress: bool = False,
) -> RefusalDirection:
    """Find the refusal direction (Arditi et al. 2024): a difference of means, chosen on held-out prompts.

    Candidates are the differences of means after every layer at every post-instruction token (``mean_directions``),
    from one pass. Each is then tested in two passes over the held-out prompts. Of those that pass the filters, the
    published rule takes the one whose ablation leaves the fewest refusals of harmful prompts.

    Args:
        held_out: harmful and harmless prompts on which candidates are compared; the last fifth of each set unless
            given.
        rule: ``"published"``; ``"bypass"``, the same without the filters of KL and induction; ``"accuracy"``, which
            tells held-out prompts apart best; ``"category"``, which does so for categories of harm it was made without.
        ablation: ``"zero"`` projects the direction out everywhere, as published; ``"affine"`` sets it to the harmless
            mean, after its own layer (``direction_ablated(to="harmless", layers=[direction.layer])``).
        layers, positions: candidates to try instead of all that the filter of depth leaves, at all post-instruction
            tokens; each costs two passes.
        refusal_tokens: ids that open a refusal; found from the model's own answers unless given.
        controls: random directions of equal length, and as many of shuffled labels, at the chosen place.

    Raises:
        ValueError: as ``mean_directions`` does; for ``"category"`` without categories, with a category of one prompt or
            with a single category; for held-out prompts that are among those of the sets, and for layers or positions
            outside. A rule that keeps no candidate is no error: ``layer`` is None, ``verdict`` says why and what next.

    Examples:
        >>> found = sc.refusal_direction(model, malicious, normal, rule="bypass", ablation="affine", controls=1)
        >>> with sc.direction.direction_ablated(model, found.chosen, to="harmless", layers=[found.layer]):
        ...     answers = sc.generate(model, malicious)
    """
    _require(rule, Rule, "rule")
    _require(ablation, Ablation, "ablation")
    used, others = _apart(harmful, harmless, held_out)
    shared: dict[str, Any] = {"template": template, "system": system, "max_tokens": max_tokens}
    states = prompt_states(model, *used, progress=progress, **shared)
    found = directions_of(states, seed=seed)
    filters = filters or DirectionFilters()
    tokens = tuple(refusal_tokens) if refusal_tokens else refusing_tokens(model, *others, detector, **shared)
    scorer = DirectionScorer(model, *others, tokens, ablation, **shared)
    rows, columns = _candidates(found, filters, layers, positions)
    scores = {name: torch.full(found.chance.shape, torch.nan, dtype=torch.float64) for name in SCORES}
    interval = torch.full((*found.chance.shape, 2), torch.nan, dtype=torch.float64)
    each: dict[tuple[int, int], ScoredPrompts] = {}
    places = [(row, column) for row in rows for column in columns if found.difference[row, column].any()]
    for place in track(places, "candidate directions", total=len(places), enabled=progress):
        each[place] = scorer.score(found.at(place[0], found.positions[place[1]]))
        for name, value in zip(SCORES, each[place].means, strict=True):
            scores[name][place] = value
        interval[place] = torch.tensor(mean_interval(each[place].bypass)[1:])
    others_states = prompt_states(model, *others, progress=progress, **shared)
    category = torch.empty(0)
    if used[0].categories is not None or rule == "category":
        category = left_out_accuracy(states, used[0], others_states)
    baseline = dict(zip(("harmful", "harmless"), (float(v.mean()) for v in scorer.baseline), strict=True))
    provenance = {**states.provenance, "held_out": [prompts.identity for prompts in others], "refusal_tokens": tokens}
    result = RefusalDirection(
        found,
        scores["bypass"],
        scores["induce"],
        scores["kl"],
        baseline,
        balanced_accuracy(states, others_states),
        category,
        rule,
        ablation,
        filters,
        None,
        None,
        {},
        {},
        provenance,
        interval,
    )
    best = _best(result, rule)
    if best is None:
        return result
    chosen = found.at(*best)
    there = each.get((best[0], found.column(best[1]))) or scorer.score(chosen)
    intervals = {name: mean_interval(getattr(there, name)) for name in SCORES}
    drawn = controls_of(scorer, states, chosen, controls, seed) if controls else {}
    return dataclasses.replace(result, layer=best[0], position=best[1], scores=intervals, controls=drawn)


def _require(value: Any, allowed: Any, name: str) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"{name} is one of {', '.join(get_args(allowed))}, not {value!r}")


def _apart(
    harmful: PromptSet | Sequence[str], harmless: PromptSet | Sequence[str], held_out: Any
) -> tuple[tuple[PromptSet, PromptSet], tuple[PromptSet, PromptSet]]:
    """The prompts that directions are made of, and those that choose."""
    a, b = require_apart(harmful, harmless)
    if held_out is None:
        n, m = (max(2, len(prompts) // 5) for prompts in (a, b))
        if min(len(a) - n, len(b) - m) < LEAST:
            raise ValueError(
                f"{len(a)} harmful and {len(b)} harmless prompts leave too few when a fifth of each is held out: give "
                f"at least {LEAST + 2} of each, or held_out="
            )
        return (a[:-n], b[:-m]), (a[-n:], b[-m:])
    others = require_apart(held_out[0], held_out[1], least=2)
    if both := (set(others[0]) | set(others[1])) & (set(a) | set(b)):
        raise ValueError(
            f"{len(both)} held-out prompts are among those that directions are made of: {sorted(both)[0][:60]!r}"
        )
    return (a, b), others


def _candidates(
    found: MeanDirections, filters: DirectionFilters, layers: Sequence[int] | None, positions: tuple[int, ...] | None
) -> tuple[list[int], list[int]]:
    n_layers = len(found.difference)
    rows = filters.shallow(n_layers).nonzero().flatten().tolist() if layers is None else list(layers)
    outside = [row for row in rows if not 0 <= row < n_layers]
    if outside:
        raise ValueError(f"layer {outside[0]} is outside the model, whose layers are 0 to {n_layers - 1}")
    wanted = found.positions[1:] if positions is None else positions
    return rows, [found.column(position) for position in wanted]


def _best(found: RefusalDirection, rule: Rule) -> tuple[int, int] | None:
    """Layer and position of the candidate that a rule takes; None if it keeps none."""
    _require(rule, Rule, "rule")
    if rule == "category" and not found.category.numel():
        raise ValueError("the harmful prompts have no categories, so none of them can be left out")
    if rule in ("published", "bypass"):
        kept = found.kept if rule == "published" else ~found.bypass.isnan()
        order = torch.where(kept, found.bypass, torch.inf)
        if not bool(kept.any()):
            return None
        row, column = divmod(int(order.argmin()), order.shape[1])
    else:
        score = (found.accuracy if rule == "accuracy" else found.category).clone()
        score[:, 0] = -1.0  # the instruction's own token is where harmfulness is
        score[~found.filters.shallow(len(score))] = -1.0
        if float(score.max()) < 0:
            return None
        row, column = divmod(int(score.argmax()), score.shape[1])
    return row, found.directions.positions[column]
