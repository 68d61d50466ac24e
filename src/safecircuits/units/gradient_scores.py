"""First-order importance: SNIP and Taylor, by one forward and one backward pass a batch for all layers at once.

With L(x) the mean cross-entropy of a prompt's response tokens:

    SNIP    I = mean over prompts x of  Σ |w · ∂L(x)/∂w|           over the unit's weights w
    Taylor  I = mean over prompts x of  |Σ a · ∂L(x)/∂a|            over positions and the unit's channels a

(Taylor without the positions that every prompt begins with; a weight is there for all positions.)

The absolute value is taken prompt by prompt (as Wei et al. 2024 do, who therefore run one prompt at a time, and all of
them again for each layer). Here a prompt's own weight gradient is put together from what enters a linear map and the
gradient at its output, so that prompts share a batch, layers share a pass, and no weight gradient is stored.

A unit's weights: a neuron's rows of gate and in and its column of out; a head's slices of q and o and, of the key and
value head that it shares with others under GQA, an equal part. Biases and norms belong to none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.progress import track
from safecircuits.base.vocabulary import Component, Site, TokenChoice
from safecircuits.hooks.linear_maps import Matrix, components_of, watched
from safecircuits.model.attach import attached
from safecircuits.model.beginning import chosen_positions, encode_to_score
from safecircuits.model.in_use import used_alone
from safecircuits.model.memory import batch_tokens
from safecircuits.model.shares import spread
from safecircuits.model.sites import HookedModel, ModelShape, tokenizer_of, unit_hook
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode
from safecircuits.units.gradients import keep, only_activations, response_losses, tracked
from safecircuits.units.moments import Moments, RunningMoments, merged

CHUNK = 2**20
"""Entries of per-prompt gradients that are held at once, unless one prompt has more: few enough for a cache."""

SITE_COMPONENTS: dict[Site, tuple[Component, ...]] = {"mlp": ("gate", "in", "out"), "attn": ("q", "k", "v", "o")}


def taylor_moments(
    model: HookedModel,
    data: PromptSet,
    *,
    tokens: TokenChoice,
    sites: Sequence[Site],
    template: str,
    max_tokens: int | None,
    progress: bool,
    count_beginning: bool = False,
) -> dict[Site, Moments]:
    """Moments over prompts of |Σ activation × gradient|, ``[layer, unit]`` by site."""
    n_layers = int(model.cfg.n_layers)
    examples = encode_to_score(
        tokenizer_of(model), data, tokens="all", template=template, count_beginning=count_beginning
    )

    def part(share: list[int]) -> dict[tuple[str, int], Moments]:
        return _taylor(model, [examples[row] for row in share], tokens, sites, max_tokens, progress)

    running = RunningMoments(merged(found for _, found in spread(model, examples, part, "taylor scores")))
    return {site: running.stack(site, n_layers) for site in sites}


def _taylor(
    model: HookedModel,
    examples: Sequence[Encoded],
    tokens: TokenChoice,
    sites: Sequence[Site],
    max_tokens: int | None,
    progress: bool,
) -> dict[tuple[str, int], Moments]:
    running, activations = RunningMoments(), dict[tuple[str, int], Tensor]()
    places = [(site, layer) for site in sites for layer in range(int(model.cfg.n_layers))]
    hooks = {unit_hook(*place): keep(activations, place) for place in places}
    budget = batch_tokens(model, examples, max_tokens, gradients=True)
    with only_activations(model), attached(model, hooks):
        for batch in track(list(batches(examples, budget)), "taylor scores", enabled=progress):
            loss = response_losses(model, batch).sum()
            gradients = torch.autograd.grad(loss, [activations[place] for place in places])
            chosen = chosen_positions(batch, tokens)
            for (site, layer), gradient in zip(places, gradients, strict=True):
                rows = unit_products(activations[site, layer].detach(), gradient, chosen).abs().cpu()
                running.add(site, layer, rows, f"activations or gradients at {unit_hook(site, layer)}")
            activations.clear()
    return running.by_key


def unit_products(
    activation: Float[Tensor, "batch pos ..."], gradient: Float[Tensor, "batch pos ..."], chosen: Tensor
) -> Float[Tensor, "batch unit"]:
    """Activation × gradient, summed over the chosen positions and, for heads, over the head's channels."""
    product = activation.double() * gradient.double()
    where = chosen.to(product.device)
    where = where.reshape(*where.shape, *(1,) * (product.ndim - 2))
    summed = product.masked_fill(~where, 0.0).sum(1)
    return summed if summed.ndim == 2 else summed.sum(-1)


def snip_moments(
    model: HookedModel,
    data: PromptSet,
    *,
    sites: Sequence[Site],
    template: str,
    max_tokens: int | None,
    progress: bool,
) -> dict[Site, Moments]:
    """Moments over prompts of Σ |weight × gradient|, ``[layer, unit]`` by site."""
    running, n_layers, shape = RunningMoments(), int(model.cfg.n_layers), ModelShape.of(model)
    site_of: dict[Component, Site] = {c: site for site in sites for c in SITE_COMPONENTS[site]}
    batch_rows: dict[tuple[Site, int], dict[int, Tensor]] = {}

    def use(layer: int, component: Component, first: int, gradients: Float[Tensor, "prompt out in"]) -> None:
        weight = Matrix.of(model, layer, component).read().float()
        units = to_units(component, (gradients * weight).abs(), shape).double().cpu()
        rows = batch_rows.setdefault((site_of[component], layer), {})
        rows[first] = rows[first] + units if first in rows else units

    def end_of_batch() -> None:
        for (site, layer), rows in batch_rows.items():
            values = torch.cat([rows[first] for first in sorted(rows)])
            running.add(site, layer, values, f"weight gradients of the {site} site in layer {layer}")
        batch_rows.clear()

    # Chunks of prompts must be cut alike for all matrices of a unit, so that their parts can be added.
    components = [c for c in components_of(model) if c in site_of]
    examples = encode(tokenizer_of(model), data, template=template, with_responses=True)

    def part(share: list[int]) -> dict[tuple[str, int], Moments]:
        mine = [examples[row] for row in share]
        each_prompts_gradients(model, mine, components, use, end_of_batch, max_tokens=max_tokens, progress=progress)
        return running.by_key

    whole = RunningMoments(merged(found for _, found in spread(model, examples, part, "snip scores")))
    return {site: whole.stack(site, n_layers) for site in sites}


Use = Callable[[int, Component, int, Tensor], None]
"""Called with layer, matrix, the first row of the batch, and ``[prompt out in]`` gradients from that row on."""


def each_prompts_gradients(
    model: HookedModel,
    examples: Sequence[Encoded],
    components: Sequence[Component],
    use: Use,
    end_of_batch: Callable[[], None] = lambda: None,
    *,
    max_tokens: int | None = None,
    progress: bool = False,
) -> None:
    """Every prompt's gradient of its response loss, for each matrix of every layer, in one pass.

    Gradients are made during the backward pass, handed to ``use`` in pieces, and dropped.
    """
    entered: dict[tuple[int, Component], Tensor] = {}
    with used_alone(model):  # or another thread has changed them for a moment
        largest = max(Matrix.of(model, 0, component).view.numel() for component in components)
    step = max(1, CHUNK // largest)

    def remember(layer: int, component: Component, x: Tensor) -> None:
        entered[layer, component] = x.detach()

    def meet(layer: int, component: Component, y: Tensor) -> Tensor:
        y = tracked(y)

        def with_gradient(dy: Tensor) -> None:
            x = entered.pop((layer, component)).float()
            for first in range(0, len(x), step):
                part = slice(first, first + step)
                use(layer, component, first, dy[part].float().transpose(1, 2) @ x[part])

        y.register_hook(with_gradient)
        return y

    budget = batch_tokens(model, examples, max_tokens, gradients=True)
    with only_activations(model), watched(model, components, inputs=remember, outputs=meet):
        for batch in track(list(batches(examples, budget)), "gradients", enabled=progress):
            torch.autograd.backward(response_losses(model, batch).sum())
            end_of_batch()


def to_units(
    component: Component, entries: Float[Tensor, "prompt out in"], shape: ModelShape
) -> Float[Tensor, "prompt unit"]:
    """Sums of a matrix's entries over the units they belong to."""
    if component in ("gate", "in"):
        return entries.sum(2)
    if component == "out":
        return entries.sum(1)
    if component == "o":
        return reduce(entries, "prompt out (head d_head) -> prompt head", "sum", head=shape.n_heads)
    if component == "q":
        return reduce(entries, "prompt (head d_head) d_in -> prompt head", "sum", head=shape.n_heads)
    shared = reduce(entries, "prompt (head d_head) d_in -> prompt head", "sum", head=shape.n_kv_heads)
    group = shape.n_heads // shape.n_kv_heads
    return rearrange(repeat(shared / group, "prompt kv -> prompt kv q", q=group), "prompt kv q -> prompt (kv q)")
