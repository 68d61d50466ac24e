"""Importance of a unit as a group of coupled weights: LLM-Pruner's Taylor terms, and plain magnitudes.

A unit's weights go together: its rows of the matrices that make it and its columns of the one that reads it. With
w a weight of the unit, ḡ the mean over prompts of ∂L(x)/∂w, and f the mean of its square:

    vectorize  |Σ w ḡ|          first   Σ |w ḡ|           l1   Σ |w|
    second     Σ w² f           mix     Σ |w ḡ − ½ w² f|   l2   Σ w²

``snip`` of ``score_units`` differs from ``first`` in taking the absolute value prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import SITES, Component, Site
from safecircuits.hooks.linear_maps import Matrix, components_of
from safecircuits.model.sites import HookedModel, ModelShape, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.units.gradient_scores import SITE_COMPONENTS, each_prompts_gradients, to_units
from safecircuits.units.moments import Moments
from safecircuits.units.score_methods import Method
from safecircuits.units.scores import UnitScores, model_facts

CoupledKind = Literal["vectorize", "first", "second", "mix", "l1", "l2"]


class CoupledScores(UnitScores):
    """Scores of coupled groups; ``classify_units``, ``set_difference`` and ``top`` take them like any others.

    Examples:
        >>> scores = sc.units.coupled_scores(model, malicious)
        >>> scores.scores["mlp"].shape
        torch.Size([8, 384])
        >>> groups = sc.classify_units(scores, sc.units.coupled_scores(model, utility), scu=0.01, ucu=0.1, ru=0.1)
    """

    @override
    def merge(self, other: UnitScores) -> UnitScores:
        """Not possible: what is kept is not a mean over prompts.

        Raises:
            ValueError: always.
        """
        raise ValueError("coupled scores of two sets do not merge: score both sets together, PromptSet + PromptSet")

    def rescore(self, method: Method) -> UnitScores:
        """Not possible: only the score itself is kept.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{method} scores cannot be made from {self.method} scores: score again")


@checked
def coupled_scores(
    model: HookedModel,
    data: PromptSet | None = None,
    *,
    kind: CoupledKind = "first",
    sites: Sequence[Site] = SITES,
    template: str = "auto",
    max_tokens: int | None = None,
    progress: bool = False,
) -> CoupledScores:
    """Score every unit of every layer by all weights that belong to it, by one forward and one backward pass a batch.

    A key and value head that several query heads share (GQA) counts in equal parts for each. The mean gradients of all
    matrices are held on the CPU, in ``"mix"`` their squares too.

    Args:
        data: prompts with responses, whose loss is the responses'; ``"l1"`` and ``"l2"`` need none.

    Raises:
        ValueError: for an unknown kind, or no data where it is needed.
        FloatingPointError: for a score that is not finite; names site and layer.

    Examples:
        >>> scores = sc.units.coupled_scores(model, malicious, kind="second")
        >>> scores.scores["attn"].shape
        torch.Size([8, 8])
    """
    if kind not in get_args(CoupledKind):
        raise ValueError(f"kind is one of {', '.join(get_args(CoupledKind))}, not {kind!r}")
    site_of: dict[Component, Site] = {c: site for site in sites for c in SITE_COMPONENTS[site]}
    components = [c for c in components_of(model) if c in site_of]
    sums: dict[tuple[int, Component], Tensor] = {}
    squares: dict[tuple[int, Component], Tensor] = {}
    count = 0
    if kind not in ("l1", "l2"):
        if data is None:
            raise ValueError(f"{kind!r} scores need prompts with responses")

        def use(layer: int, component: Component, _first: int, gradients: Tensor) -> None:
            key = (layer, component)
            if kind != "second":
                _add(sums, key, gradients.sum(0).cpu())
            if kind in ("second", "mix"):
                _add(squares, key, gradients.square().sum(0).cpu())

        examples = encode(tokenizer_of(model), data, template=template, with_responses=True)
        each_prompts_gradients(model, examples, components, use, max_tokens=max_tokens, progress=progress)
        count = len(examples)
    shape, scores = ModelShape.of(model), dict[Site, Tensor]()
    for site in sites:
        rows = torch.zeros(shape.n_layers, shape.n_units(site), dtype=torch.float64)
        for layer in range(shape.n_layers):
            for component in components:
                if site_of[component] == site:
                    weight = Matrix.of(model, layer, component).read().float().cpu()
                    key = (layer, component)
                    entries = _entries(kind, weight, sums.get(key), squares.get(key), max(count, 1))
                    rows[layer] += to_units(component, entries[None].double(), shape)[0]
            if not torch.isfinite(rows[layer]).all():
                raise FloatingPointError(f"the coupled scores of the {site} site in layer {layer} are not finite")
        scores[site] = rows.abs()  # only "vectorize" has sums below zero
    moments = {site: Moments(count, rows, torch.zeros_like(rows)) for site, rows in scores.items()}
    provenance = {"data": data and data.identity, "template": template, "kind": kind}
    return CoupledScores(
        scores=scores,
        moments=moments,
        method=f"coupled-{kind}",  # type: ignore[arg-type]  # not one of score_units
        tokens="all",
        provenance=provenance,
        **model_facts(model, sites),
    )


def _entries(kind: str, weight: Tensor, total: Tensor | None, squares: Tensor | None, n: int) -> Tensor:
    """What each weight of a matrix adds to its unit's score."""
    if kind in ("l1", "l2"):
        return weight.abs() if kind == "l1" else weight.square()
    if kind == "second":
        assert squares is not None
        return weight.square() * squares / n
    assert total is not None
    first = weight * total / n
    if kind == "vectorize":
        return first
    if kind == "first":
        return first.abs()
    assert squares is not None
    return (first - weight.square() * squares / (2 * n)).abs()


def _add(sums: dict[tuple[int, Component], Tensor], key: tuple[int, Component], value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value
