"""Where refusing is decided: the layers in which patching the residual stream comes to carry the decision.

The angle gap and the scaling search look at what a layer does to angles and counts; both react to layers that merely
carry a decision on. Here a malicious prompt's residual stream is put into a harmless prompt's run, and the other way
round, after one layer at a time (activation patching, or interchange), at the post-instruction tokens. Below
the layers that decide, that changes nothing: the decision still has to be read off the instruction. Above them it
carries all of the difference, however much later layers turn and amplify it. The layers in between are the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safecircuits.base.arguments import checked, read_fields
from safecircuits.base.resamples import RangeResamples
from safecircuits.base.stats import canonical_order, simultaneous_band
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.generate import generate
from safecircuits.behavior.openings import opening_tokens
from safecircuits.behavior.verdict import tokens_needed
from safecircuits.behavior.verdict import verdicts as verdicts_of
from safecircuits.behavior.verdict_table import Tally, Verdicts
from safecircuits.hooks.patching import CachedRun, count_post_instruction_tokens
from safecircuits.layers.counting import early_verdict
from safecircuits.layers.decision_categories import (
    CategoryDecision,
    categories_frame,
    decisions_by_category,
    ranges_of,
    refuses_more,
    resampled_share,
)
from safecircuits.model.shares import columns_in_order, spread
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


GROWTH = 0.7
"""Chosen on development members of both planted families (``python -m benchmarks.ground_truth.decision_rules``)."""


@dataclass(frozen=True)
class DecisionRule:
    """The rule's one number: which growth of the share, from one layer to the next, counts as deciding.

    Of all blocks the range is the one in which the share grows most beyond ``growth`` times what it would grow in as
    many layers if every layer of the model did the same. So a slow drift over many layers is left out, however much it
    adds up to, and a layer that does little between two that do much is not. The range starts at a layer whose share is
    above zero beyond noise.

    Examples:
        >>> sc.layers.DecisionRule().range([0.0, 0.02, 0.04, 0.06, 0.5, 0.9, 0.92, 0.94, 0.97, 1.0])
        LayerRange(first=4, last=5)
    """

    growth: float = GROWTH

    def __post_init__(self) -> None:
        read_fields(self)
        if self.growth <= 0:
            raise ValueError(f"a decision rule needs growth > 0, not {self}")

    def range(self, share: Sequence[float], low: Sequence[float] | None = None) -> LayerRange:
        """Apply the rule to the share of each layer; ``low`` is the lower end of its interval."""
        even = self.growth / len(share)
        # How far the share before each layer, and at the end, lies above what even growth has come to.
        above = [value - even * layer for layer, value in enumerate([0.0, *share])]
        sure = [low is None or low[first] > 0 for first in range(len(share))]
        sure[-1] = True  # after the last layer the patched residual stream is all that the logits see
        start, best, found = -1, float("-inf"), (0, 0)
        for layer in range(len(share)):
            if sure[layer] and (start < 0 or above[layer] <= above[start]):
                start = layer
            if start >= 0 and above[layer + 1] - above[start] > best + 1e-9:
                best, found = above[layer + 1] - above[start], (start, layer)
        return LayerRange(*found)


@dataclass(frozen=True)
class DecisionLayers(Result):
    """What ``decision_layers`` found: the layers, and the share of the decision that patching after each one carries.

    Examples:
        >>> found = sc.decision_layers(model, normal, malicious)
        >>> found.share.shape
        torch.Size([8])
        >>> frame = found.to_frame()  # the share of the decision that patching after each layer carries
    """

    layers: LayerRange | None
    """None if the model does not refuse malicious prompts more often than harmless ones, beyond noise; nothing is
    measured then, and all values are NaN."""
    share: Float[Tensor, " layer"]
    """Mean effect of patching over the mean difference of the two prompts' scores; 1 after the last layer."""
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    """95 % bootstrap band of the share over pairs of prompts; it holds all layers at once, since one is picked."""
    effect: Float[Tensor, "layer pair"]
    """Refuse-minus-comply score gained by the harmless prompt or lost by the malicious one, their mean, in nats."""
    full: Float[Tensor, " pair"]
    """Score of the malicious prompt minus that of the harmless one, in nats."""
    malicious_refused: Bool[Tensor, " pair"]
    normal_refused: Bool[Tensor, " pair"]
    rule: DecisionRule
    provenance: dict[str, Any]
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """What the answers are (``malicious``, ``normal``), which end where their verdict is certain: none is cut."""
    answers: Mapping[str, Verdicts] = field(default_factory=dict)
    """The answers themselves, in the order of the pairs."""

    @cached_property
    def resampled(self) -> RangeResamples | None:
        """How sure the range is: what the rule says of resampled pairs; None if nothing was measured."""
        if self.layers is None:
            return None
        return ranges_of(self.rule, resampled_share(self.effect, self.full))

    @cached_property
    def by_category(self) -> dict[str, CategoryDecision]:
        """The same for the pairs of each category of malicious prompts; empty without categories."""
        if "malicious" not in self.answers:
            return {}
        return decisions_by_category(self.rule, self.effect, self.full, self.answers["malicious"], self.normal_refused)

    @property
    def grows(self) -> tuple[float, float] | None:
        """The share before the first of the layers, and after the last."""
        if self.layers is None:
            return None
        share = [0.0, *self.share.tolist()]
        return share[self.layers.first], share[self.layers.last + 1]

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        n = len(self.full)
        rates = f"{int(self.malicious_refused.sum())} of {n} malicious and {int(self.normal_refused.sum())} of {n} "
        rates += "harmless prompts refused"
        if self.tallies:
            rates += f" ({', '.join(f'{one.incoherent} {name} incoherent' for name, one in self.tallies.items())})"
        if self.layers is None:
            return f"no layers found: {rates}, within noise"
        assert self.resampled is not None
        assert self.grows is not None
        before, after = (f"{100 * share:.0f} %" for share in self.grows)
        sure = self.resampled.words(self.layers)
        carried = f"patching before them carries {before} of the decision, after them {after}"
        return f"layers {self.layers} decide ({sure}): {carried}; {rates}"

    @property
    def caveat(self) -> str:
        """What to hold against it first; empty if the layers are sure."""
        if self.resampled is None:
            return "nothing was measured: refusals of malicious and of harmless prompts differ within noise"
        return self.resampled.doubt(self.layers)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer."""
        import pandas as pd

        columns = {name: getattr(self, name).tolist() for name in ("share", "low", "high")}
        inside = [self.layers is not None and layer in self.layers for layer in range(len(self.share))]
        return pd.DataFrame({"layer": range(len(self.share)), **columns, "decides": inside})

    def categories(self) -> pd.DataFrame:
        """One row a category of malicious prompts: its layers, or why there are none (``categories_frame``)."""
        import pandas as pd

        found = self.by_category
        return categories_frame(found, self.answers["malicious"]) if found else pd.DataFrame()

    def record(self) -> dict[str, Any]:
        """``share``, ``low``, ``high`` by layer, the ``layers``, what it ``grows`` in them from and to, resamples."""
        curves = {name: getattr(self, name).tolist() for name in ("share", "low", "high")}
        layers = None if self.layers is None else list(self.layers)
        sure = None if self.resampled is None else self.resampled.record(self.layers)
        return {**curves, "growth": self.rule.growth, "layers": layers, "grows": self.grows, "resamples": sure}

    def plot(self, ax: Axes | None = None) -> Axes:
        """How much of the choice to refuse comes along when the residual stream is patched after each layer, with its
        95 % interval, and the layers that decide."""
        from safecircuits.plots.decision import plot_decision

        return plot_decision(self, ax=ax)


@checked
def decision_layers(
    model: HookedModel,
    normal: PromptSet | Sequence[str],
    malicious: PromptSet | Sequence[str],
    *,
    rule: DecisionRule | None = None,
    detector: str | RefusalDetector = "opening",
    max_new_tokens: int | None = None,
    template: str = "auto",
    max_tokens: int | None = None,
    progress: bool = False,
) -> DecisionLayers:
    """Find the layers that decide whether to refuse, by activation patching between harmful and harmless prompts.

    The k-th harmless prompt is paired with the k-th malicious one, up to the shorter set's length. The decision is
    measured at the first answer token: the log-probability of the tokens with which the model's own refusals begin,
    minus that of the tokens with which its answers to the harmless prompts begin. The residual stream of one prompt is
    patched into the other after one layer at a time; the share of this difference that comes along is the share of the
    decision. No base model is needed.

    Above a patched layer only the patched positions change, so what stands before them is computed once, and one pass
    over the patched positions serves all layers; a model that allows no prefix cache is run over the pairs twice for
    each layer.

    The positions patched are the post-instruction tokens: the last token, and the other tokens that the template
    writes after the instruction, the same in all prompts.

    Args:
        normal: harmless prompts; an over-rejection set serves as well, and asks more of the layers.
        malicious: harmful prompts that the model refuses.
        rule: how much growth of the share counts as deciding.
        detector, max_new_tokens: say which completions are refusals; as many tokens as the detector needs unless
            given (``tokens_needed``). A completion ends as soon as its verdict is certain.
        template, max_tokens: as in ``collect_residuals``.

    Raises:
        ValueError: for fewer than two pairs, or if refusals and answers begin with the same tokens.

    Examples:
        >>> found = sc.decision_layers(model, normal, malicious)
        >>> found.layers
        LayerRange(first=..., last=...)
    """
    n, m = as_prompt_set(normal, "normal"), as_prompt_set(malicious, "malicious")
    size = min(len(n), len(m))
    if size < 2:
        raise ValueError(f"{len(n)} harmless and {len(m)} malicious prompts make {size} pair; at least two are needed")
    n, m = n.take(size), m.take(size)
    # Pairs run in an order of their own: given in another one, they must not round otherwise.
    order = canonical_order(list(zip(n, m, strict=True)))
    sets = [prompts.subset(order) for prompts in (n, m)]
    limit = tokens_needed(detector) if max_new_tokens is None else max_new_tokens
    options: dict[str, Any] = {"max_new_tokens": limit, "template": template, "max_tokens": max_tokens}
    until = early_verdict(model, sets[0], detector, template)
    read = [verdicts_of(generate(model, prompts, **options, until=until), detector) for prompts in sets]
    verdicts = [one.refused for one in read]
    n_layers, rule = int(model.cfg.n_layers), rule or DecisionRule()
    provenance: dict[str, Any] = {
        "normal": n.identity,
        "malicious": m.identity,
        "detector": detector if isinstance(detector, str) else repr(detector),
        "max_new_tokens": limit,
        "template": template,
    }
    as_given = canonical_order(order)
    answers = {name: one.subset(as_given) for name, one in zip(("normal", "malicious"), read, strict=True)}
    tallies = {name: one.tally for name, one in answers.items()}
    by_pair = verdicts[1][as_given], verdicts[0][as_given], rule, provenance, tallies, answers
    if not refuses_more(verdicts[1], verdicts[0]):
        nothing = torch.full((n_layers,), float("nan"), dtype=torch.float32)  # not 0, which would be a finding
        effect = torch.full((n_layers, size), float("nan"), dtype=torch.float32)
        full = torch.full((size,), float("nan"), dtype=torch.float32)
        return DecisionLayers(None, nothing, nothing, nothing, effect, full, *by_pair)
    examples = [encode(tokenizer_of(model), prompts, template=template) for prompts in sets]
    positions = count_post_instruction_tokens(model.tokenizer, [*examples[0], *examples[1]], template)
    pairs = _Pairs(model, (examples[0], examples[1]), positions, max_tokens)
    complied, refused = pairs.first_tokens()
    tells = opening_tokens(refused[verdicts[1]].tolist(), complied[~verdicts[0]].tolist())
    openings = dict(zip(("refuse", "comply"), tells, strict=True))
    effect, full = pairs.effects(openings, progress)
    share = effect.mean(1) / full.mean()
    low, high = simultaneous_band(share, resampled_share(effect, full))
    provenance["positions"] = positions
    provenance |= {name: model.tokenizer.convert_ids_to_tokens(ids) for name, ids in openings.items()}
    layers = rule.range(share.tolist(), low.tolist())
    return DecisionLayers(layers, share, low, high, effect[:, as_given], full[as_given], *by_pair)


class _Pairs:
    """A harmless and a malicious prompt each, run once and patched into each other; each process has its share."""

    def __init__(
        self, model: HookedModel, sets: tuple[list[Encoded], list[Encoded]], positions: int, max_tokens: int | None
    ) -> None:
        self.model, self.sets, self.positions, self.max_tokens = model, sets, positions, max_tokens
        self.runs: list[CachedRun] = []

    def first_tokens(self) -> Int[Tensor, "kind pair"]:
        """The token that each prompt's answer begins with, of harmless ones first."""

        def run(share: list[int]) -> Int[Tensor, "kind share"]:
            for examples in self.sets:
                mine = [examples[row] for row in share]
                self.runs.append(CachedRun.of(self.model, mine, self.positions, self.max_tokens))
            return torch.stack([one.logits.argmax(-1) for one in self.runs])

        return columns_in_order(spread(self.model, self.sets[1], run, "runs of pairs"))

    def effects(
        self, openings: dict[str, list[int]], progress: bool
    ) -> tuple[Float[Tensor, "layer pair"], Float[Tensor, " pair"]]:
        """Effect of patching after each layer, the mean of both directions, and the whole difference."""

        def score(logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, " pair"]:
            refuse, comply = (logits[:, openings[name]].double().logsumexp(-1) for name in ("refuse", "comply"))
            return refuse - comply

        def patch(_: list[int]) -> Float[Tensor, "row share"]:
            normal, malicious = self.runs
            before, after = score(normal.logits), score(malicious.logits)
            gained = normal.patched(self.model, malicious, score, progress=progress) - before
            lost = after - malicious.patched(self.model, normal, score, progress=progress)
            return torch.cat([(gained + lost) / 2, (after - before)[None]])

        both = columns_in_order(spread(self.model, self.sets[1], patch, "patching of pairs"))
        return both[:-1], both[-1]
