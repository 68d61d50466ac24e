"""Scores of single weights, and Wei et al.'s set difference over them (Wei et al. 2024, the baseline of SSAH).

    Wanda  |W_ij| · root mean square of input j over the chosen tokens
    SNIP   |W_ij| · mean over prompts of |∂L(x)/∂W_ij|, L(x) the mean cross-entropy of the response tokens

With a base model, |W_ij − W_ij of base| takes the place of |W_ij|: what alignment changed (their difference scores).
Both are of the model as it is: no layer is pruned before the next is scored. One tensor a matrix, ``[out in]`` as an
``nn.Linear`` holds it, under the name ``"layer.matrix"`` (``"3.q"``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import Component, TokenChoice
from safecircuits.hooks.linear_maps import Matrix, components_of
from safecircuits.model.beginning import beginning_facts, encode_to_score, require_tokens
from safecircuits.model.in_use import used_alone
from safecircuits.model.offload import require_in_place
from safecircuits.model.parameters import Masks, checkpoint_parameters, in_checkpoint_names
from safecircuits.model.shares import spread
from safecircuits.model.sites import HookedModel, ModelShape, is_bridge, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.results.result import Result
from safecircuits.units.gradient_scores import each_prompts_gradients
from safecircuits.units.moments import Moments, RunningMoments, merged
from safecircuits.units.scores import tokenizer_fingerprint
from safecircuits.weights.inputs import each_input

WeightMethod = Literal["wanda", "snip", "magnitude"]


@dataclass(frozen=True)
class WeightScores(Result):
    """One score a weight, float32 on the CPU.

    Examples:
        >>> scores = sc.weights.score_weights(model, malicious, components=["out"])
        >>> scores.scores["3.out"].shape, scores.method
        (torch.Size([128, 384]), 'snip')
    """

    scores: Mapping[str, Float[Tensor, "out in"]]
    method: WeightMethod
    tokens: TokenChoice
    count: int
    """Tokens (Wanda) or prompts (SNIP) that the mean is over; 0 for magnitudes."""
    shape: ModelShape
    tokenizer: str
    provenance: dict[str, Any]
    relative: bool = False
    """Whether the weights' change from a base model was scored, |W − W_base| for |W|."""

    def merge(self, other: WeightScores) -> WeightScores:
        """Scores over both data sets together.

        Raises:
            ValueError: for scores that were not made the same way.
        """
        require_same_way(self, other, "the other scores")
        provenance = {"merged": [self.provenance, other.provenance]}
        if self.method == "magnitude":  # needs no data, so both are the same
            return replace(self, provenance=provenance)
        n, m = self.count, other.count
        # Wanda's is the root of a mean of squares, SNIP's a mean, and both times the same weight.
        power = 2 if self.method == "wanda" else 1
        merged = {
            key: ((n * score**power + m * other.scores[key] ** power) / (n + m)) ** (1 / power)
            for key, score in self.scores.items()
        }
        return replace(self, scores=merged, count=n + m, provenance=provenance)


@dataclass(frozen=True)
class WeightMask(Result):
    """Which weights were chosen, by matrix.

    Examples:
        >>> scores = sc.weights.score_weights(model, malicious, method="wanda", components=["out"])
        >>> mask = sc.weights.choose_weights(scores, n_of_m=(2, 4))
        >>> mask.share
        0.5
    """

    masks: Mapping[str, Bool[Tensor, "out in"]]
    shape: ModelShape
    provenance: dict[str, Any]

    @property
    def n_weights(self) -> int:
        """How many weights were chosen."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def share(self) -> float:
        """Their share of all weights that were scored."""
        return self.n_weights / sum(mask.numel() for mask in self.masks.values())

    def jaccard(self, other: WeightMask) -> dict[str, float]:
        """Overlap with another choice, matrix by matrix; 1 where both chose nothing."""
        other.shape.require_same(self.shape, "the other choice of weights")
        if set(self.masks) != set(other.masks):
            raise ValueError("the two choices of weights are not of the same matrices")
        return {
            key: float((mask & other.masks[key]).sum()) / max(int((mask | other.masks[key]).sum()), 1)
            if (mask | other.masks[key]).any()
            else 1.0
            for key, mask in self.masks.items()
        }

    def parameter_masks(self, model: HookedModel) -> Masks:
        """Boolean tensors by parameter name (Hugging Face's for a bridge), True where chosen: for any trainer."""
        self.shape.require_same(ModelShape.of(model), "the choice of weights")
        require_in_place(model, "a mask of single weights")
        own = dict(model.named_parameters())
        names = {id(p): name for name, p in own.items()}
        masks: Masks = {}
        for key, mask in self.masks.items():
            matrix = Matrix.named(model, key)
            name = names.get(id(matrix.owner))
            if name is None:
                raise ValueError(f"matrix {key} is a copy of its parameter, so it cannot be masked")
            parameter = own[name]
            empty = torch.empty_strided(parameter.shape, parameter.stride(), dtype=torch.bool).zero_()
            whole = masks.setdefault(name, empty)
            offset = matrix.view.storage_offset() - parameter.storage_offset()
            window = torch.as_strided(whole, matrix.view.shape, matrix.view.stride(), offset)
            Matrix(window, matrix.component, parameter).write(mask)
        return in_checkpoint_names(model, masks, checkpoint_parameters(model)) if is_bridge(model) else masks


@checked
def score_weights(
    model: HookedModel,
    data: PromptSet,
    *,
    method: WeightMethod = "snip",
    tokens: TokenChoice = "response",
    components: Sequence[Component] | None = None,
    base: HookedModel | None = None,
    template: str = "auto",
    max_tokens: int | None = None,
    count_beginning: bool = False,
    progress: bool = False,
) -> WeightScores:
    """Score every weight of the chosen matrices of every layer.

    Args:
        base: the model before alignment: |W − W_base| takes the place of |W|. With ``method="magnitude"`` that is the
            size of the change itself.
        tokens: for Wanda, whose inputs count. SNIP's loss is the responses' and its gradient runs over all positions.
        components: matrices, all of a layer's unless given.
        max_tokens: as in ``score_units``.
        count_beginning: for Wanda, whether what every prompt begins with counts too; see ``score_units``. It matters
            where the prompt's tokens do.

    Examples:
        >>> scores = sc.weights.score_weights(model, malicious, method="wanda", components=["gate", "in"])
        >>> sorted(scores.scores)[:3]
        ['0.gate', '0.in', '1.gate']
    """
    if method not in get_args(WeightMethod):
        raise ValueError(f"no weight score {method!r}; there are {', '.join(get_args(WeightMethod))}")
    require_tokens(tokens)
    if base is not None:
        ModelShape.of(base).require_same(ModelShape.of(model), "the base model")
    chosen = components_of(model, components)
    keys = [(layer, component) for layer in range(int(model.cfg.n_layers)) for component in chosen]
    sums: dict[tuple[int, Component], Tensor] = {}
    count = 0
    if method == "snip":

        def use(layer: int, component: Component, _first: int, gradients: Tensor) -> None:
            total = gradients.abs().sum(0).cpu()
            sums[layer, component] = sums[layer, component] + total if (layer, component) in sums else total

        examples = encode(tokenizer_of(model), data, template=template, with_responses=True)
        each_prompts_gradients(model, examples, chosen, use, max_tokens=max_tokens, progress=progress)
        count = len(examples)
        factor = {key: sums[key] / count for key in keys}
    elif method == "wanda":
        settings: dict[str, Any] = {"tokens": tokens, "template": template, "count_beginning": count_beginning}

        def part(share: list[int]) -> tuple[int, dict[tuple[str, int], Moments]]:
            means = RunningMoments()

            def look(layer: int, component: Component, x: Tensor) -> None:
                means.add(str(component), layer, x, f"the inputs of matrix {layer}.{component}")

            n = each_input(model, data, chosen, look, rows=share, max_tokens=max_tokens, progress=progress, **settings)
            return n, means.by_key

        examples = encode_to_score(tokenizer_of(model), data, **settings)
        parts = [found for _, found in spread(model, examples, part, "wanda scores")]
        count, seen = sum(n for n, _ in parts), merged(moments for _, moments in parts)
        factor = {(layer, c): seen[str(c), layer].mean_square.sqrt().float().cpu() for layer, c in keys}
    else:
        factor = {key: torch.ones((), dtype=torch.float32) for key in keys}
    with used_alone(model):
        scores = {f"{i}.{c}": _sizes(model, base, i, c) * factor[i, c] for i, c in keys}
    broken = [key for key, score in scores.items() if not torch.isfinite(score).all()]
    if broken:
        raise FloatingPointError(f"the scores of matrix {broken[0]} (layer.matrix) are not finite")
    provenance: dict[str, Any] = {
        "data": data.identity,
        "template": template,
    }
    if method == "wanda":
        provenance["beginning"] = beginning_facts(tokenizer_of(model), template, count_beginning)
    where = "all" if method == "snip" else tokens
    fingerprint = tokenizer_fingerprint(model.tokenizer)
    relative = base is not None
    return WeightScores(scores, method, where, count, ModelShape.of(model), fingerprint, provenance, relative)


@checked
def weight_set_difference(safety: WeightScores, utility: WeightScores, *, q: float, p: float) -> WeightMask:
    """The top ``q`` of each matrix by safety without its top ``p`` by utility: S^s(q) − S^u(p) (Wei et al. §2.3).

    Args:
        q, p: shares of a matrix's weights, between 0 and 1.

    Raises:
        ValueError: for shares outside 0..1 and for scores that do not belong together.

    Examples:
        >>> safety, answers = (sc.weights.score_weights(model, d, components=["out"]) for d in (malicious, utility))
        >>> mask = sc.weights.weight_set_difference(safety, answers, q=0.05, p=0.05)
        >>> 0 < mask.share <= 0.05
        True
    """
    for name, share in {"q": q, "p": p}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share between 0 and 1, not {share}")
    require_same_way(safety, utility, "the utility scores")
    masks = {key: _top(score, q) & ~_top(utility.scores[key], p) for key, score in safety.scores.items()}
    provenance = {
        "safety": safety.provenance,
        "utility": utility.provenance,
        "method": safety.method,
        "tokens": safety.tokens,
        "q": q,
        "p": p,
    }
    return WeightMask(masks, safety.shape, provenance)


@contextmanager
def without_weights(model: HookedModel, mask: WeightMask, *, base: HookedModel | None = None) -> Iterator[None]:
    """Inside the block the chosen weights are zero, or ``base``'s; afterwards they are bit for bit what they were.

    Raises:
        ValueError: for a choice on another model, or a matrix that the model computes with a copy of.

    Examples:
        >>> safety, answers = (sc.weights.score_weights(model, d, components=["out"]) for d in (malicious, utility))
        >>> mask = sc.weights.weight_set_difference(safety, answers, q=0.05, p=0.05)
        >>> with sc.weights.without_weights(model, mask):
        ...     measured = sc.evaluate(model, malicious=malicious)
    """
    mask.shape.require_same(ModelShape.of(model), "the choice of weights")
    if base is not None:
        mask.shape.require_same(ModelShape.of(base), "the choice of weights, for the base model,")
    with used_alone(model):
        saved: list[tuple[Matrix, Tensor, Tensor]] = []
        try:
            for key, chosen in mask.masks.items():
                matrix = Matrix.named(model, key)
                value, where = matrix.read().clone(), chosen.to(matrix.view.device)
                saved.append((matrix, where, value[where]))
                value[where] = 0.0 if base is None else Matrix.named(base, key).read().to(value)[where]
                matrix.write(value)
            yield
        finally:
            for matrix, where, before in saved:
                value = matrix.read().clone()
                value[where] = before
                matrix.write(value)


def _sizes(model: HookedModel, base: HookedModel | None, layer: int, component: Component) -> Float[Tensor, "out in"]:
    """|W|, or |W − W_base| where there is a base."""
    weight = Matrix.of(model, layer, component).read().float().cpu()
    return (weight if base is None else weight - Matrix.of(base, layer, component).read().float().cpu()).abs()


def _top(score: Tensor, share: float) -> Tensor:
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().topk(round(share * score.numel())).indices] = True
    return mask.reshape(score.shape)


def require_same_way(mine: WeightScores, other: WeightScores, what: str) -> None:
    """A ValueError unless both were made of one model by one method."""
    other.shape.require_same(mine.shape, what)
    if mine.tokenizer != other.tokenizer:
        raise ValueError(f"{what} were made with another tokenizer ({other.tokenizer}, not {mine.tokenizer})")
    if mine.relative != other.relative:
        raise ValueError(f"of {what} and the first, one scores weights and the other their change from a base model")
    if (mine.method, mine.tokens, set(mine.scores)) != (other.method, other.tokens, set(other.scores)):
        raise ValueError(
            f"{what} ({other.method}, {other.tokens} tokens, {len(other.scores)} matrices) were not made the same way "
            f"({mine.method}, {mine.tokens} tokens, {len(mine.scores)} matrices)"
        )
