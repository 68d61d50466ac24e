"""Statistics of every unit's activation in one streaming forward pass over the data.

The variance runs over tokens, merged in float64 batch by batch, so memory is O(units), and batch size and order change
nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from safecircuits.base.vocabulary import MIXTURE_SITES, Site, TokenChoice
from safecircuits.hooks.passes import running
from safecircuits.model.attach import HookFn
from safecircuits.model.beginning import chosen_positions, encode_to_score
from safecircuits.model.expert_points import Routing, require_expert_points
from safecircuits.model.shares import spread
from safecircuits.model.sites import HookedModel, ModelShape, tokenizer_of, unit_hook
from safecircuits.prompts.batching import Batch
from safecircuits.prompts.prompt_set import Encoded, PromptSet
from safecircuits.units.moments import Comoments, Moments, merged, stacked
from safecircuits.units.routed import RoutedMoments, stacked_routed


def activation_moments(
    model: HookedModel,
    data: PromptSet,
    *,
    tokens: TokenChoice,
    sites: Sequence[Site],
    template: str,
    max_tokens: int | None,
    progress: bool,
    count_beginning: bool = False,
    covariances: dict[Site, Comoments] | None = None,
) -> dict[Site, Moments]:
    """Moments over the chosen tokens of what enters the output projections, ``[layer, channel]`` by site.

    Args:
        covariances: gets those between the channels of each head, ``[layer head d_head d_head]``, in the same pass.
    """
    examples = encode_to_score(
        tokenizer_of(model), data, tokens=tokens, template=template, count_beginning=count_beginning
    )
    shape = ModelShape.of(model)
    with_heads = covariances is not None

    def part(share: list[int]) -> _Seen:
        chosen = [examples[row] for row in share]
        return _seen(model, chosen, sites, tokens, max_tokens, progress, with_heads=with_heads)

    parts = [found for _, found in spread(model, examples, part, "moments of activations")]
    seen, together = (merged(found[kind] for found in parts) for kind in range(2))
    for layer in range(shape.n_layers):
        for site in sorted(sites):  # attention runs before the MLP
            if layer not in shape.layers_with(site):
                continue
            if (site, layer) not in seen:
                raise ValueError(_too_few(data, tokens, 0))
            if not torch.isfinite(seen[site, layer].m2).all():
                raise FloatingPointError(f"the activations at {unit_hook(site, layer)} are not finite")
    moments = {site: _of_all_layers(seen, site, shape) for site in sites}
    n_tokens = next(iter(moments.values())).count
    if n_tokens < 2:
        raise ValueError(_too_few(data, tokens, n_tokens))
    if covariances is not None and together:
        each = [together[layer] for layer in range(shape.n_layers)]
        covariances["attn"] = Comoments(
            n_tokens, torch.stack([c.mean for c in each]), torch.stack([c.m2 for c in each])
        )
    return moments


def _of_all_layers(seen: Mapping[tuple[Site, int], Moments], site: Site, shape: ModelShape) -> Moments:
    """Moments of every layer, zero in those that have no such units."""
    there = [seen[site, layer] for layer in shape.layers_with(site)]
    none = there[0].times(0)
    none = replace(none, count=there[0].count, mean=torch.zeros_like(none.mean))
    layers = [seen.get((site, layer), none) for layer in range(shape.n_layers)]
    routed = [moments for moments in layers if isinstance(moments, RoutedMoments)]
    return stacked_routed(routed) if routed else stacked(layers)


_Seen = tuple[dict[tuple[Site, int], Moments], dict[int, Comoments]]


def _seen(
    model: HookedModel,
    examples: Sequence[Encoded],
    sites: Sequence[Site],
    tokens: TokenChoice,
    max_tokens: int | None,
    progress: bool,
    *,
    with_heads: bool,
) -> _Seen:
    """Moments of each site and layer, and comoments of each layer's heads where they are asked for, on the CPU."""
    shape = ModelShape.of(model)
    seen: dict[tuple[Site, int], Moments] = {}
    now: dict[tuple[Site, int], Moments] = {}
    together: dict[int, Comoments] = {}
    together_now: dict[int, Comoments] = {}
    index: Int[Tensor, " token"]
    copies: int

    def watch_experts(layer: int) -> HookFn:
        routing = Routing(model, layer)
        n_experts = shape.n_units("router")

        def update(activation: Tensor) -> None:
            if len(index):
                rows, experts = (x.flatten(0, 1)[index.to(x.device)] for x in (activation, routing.index))
                now["expert", layer] = RoutedMoments.at_experts(rows, experts, n_experts).times(copies)

        return update

    def watch(site: Site, layer: int) -> HookFn:
        def update(activation: Tensor) -> None:
            if len(index):
                # [batch pos d_mlp] or [batch pos head d_head], to one row a token that counts
                rows = activation.flatten(2).flatten(0, 1).index_select(0, index.to(activation.device))
                now[site, layer] = Moments.of(rows).times(copies)
                if with_heads and site == "attn":
                    together_now[layer] = Comoments.of(rows.reshape(len(rows), *activation.shape[2:])).times(copies)

        return update

    def before(batch: Batch, stands_for: int) -> None:
        nonlocal index, copies
        # Found here, on the CPU: picking rows by a mask would wait for the device in every layer.
        index, copies = chosen_positions(batch, tokens).flatten().nonzero()[:, 0], stands_for
        now.clear()
        together_now.clear()

    def after() -> None:
        for key, moments in now.items():
            seen[key] = seen[key].merge(moments) if key in seen else moments
        for head_layer, comoments in together_now.items():
            known = together.get(head_layer)
            together[head_layer] = comoments if known is None else known.merge(comoments)

    hooks: dict[str, HookFn] = {}
    for site in sites:
        for layer in shape.layers_with(site):
            if site in MIXTURE_SITES:
                require_expert_points(model, layer)
            hooks[unit_hook(site, layer)] = watch_experts(layer) if site == "expert" else watch(site, layer)
    with running(model, hooks) as runner:
        runner.watch(
            examples,
            before,
            after,
            last_layer=shape.n_layers - 1,
            max_tokens=max_tokens,
            what="activations",
            progress=progress,
        )
    return {key: m.cpu() for key, m in seen.items()}, {layer: c.cpu() for layer, c in together.items()}


def _too_few(data: PromptSet, tokens: TokenChoice, n_tokens: int) -> str:
    return (
        f"a variance needs at least two {tokens} tokens; {data.name!r} has {n_tokens} beside what every prompt begins "
        "with (count_beginning=True counts that too)"
    )
