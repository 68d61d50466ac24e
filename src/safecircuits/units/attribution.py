"""Causal attribution: what each unit adds to the choice to refuse, to first order.

With m the refuse-minus-comply logit difference at the first answer token, a a unit's activation and r its reference:

    attribution  Σ_pos (a − r) · ∂m/∂a
    integrated   Σ_pos mean over α of (a − r) · ∂m/∂a  with every unit at r + α(a − r)

Both are sums over prompt positions and a unit's channels, of one forward and backward pass a batch and α for all layers
and sites. Where every prompt begins alike, a unit is what it is in any reference prompt: there r = a, and elsewhere it
is a mean without the beginning. In the integrated variant all units move together, so that the sum over all units of
the model tends to m(α = 1) − m(α = 0) as steps are added: nothing is counted twice and nothing left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from safecircuits.base.progress import track
from safecircuits.base.vocabulary import Site
from safecircuits.hooks.ablate import UnitValues
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.beginning import chosen_positions, encode_to_score
from safecircuits.model.forward import device_of, logits, run
from safecircuits.model.memory import batch_tokens
from safecircuits.model.shares import spread
from safecircuits.model.sites import HookedModel, tokenizer_of, unit_hook
from safecircuits.prompts.batching import Batch, batches, pad_left
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode
from safecircuits.units.activation_scores import activation_moments
from safecircuits.units.answer_tokens import AnswerTokens
from safecircuits.units.gradient_scores import unit_products
from safecircuits.units.gradients import only_activations, tracked
from safecircuits.units.moments import Moments, RunningMoments, merged

Key = tuple[Site, int]


def attribution_moments(
    model: HookedModel,
    data: PromptSet,
    answers: AnswerTokens,
    reference: UnitValues | PromptSet,
    *,
    steps: int | None,
    sites: Sequence[Site],
    template: str,
    max_tokens: int | None,
    progress: bool,
    count_beginning: bool = False,
) -> dict[Site, Moments]:
    """Moments over prompts of each unit's attribution, ``[layer, unit]`` by site.

    Args:
        reference: a value a unit (a mean over normal prompts, say), or prompts that go with those of ``data`` one by
            one: the activation at the same position of the other prompt.
        steps: how many α between reference and activation (the middles of as many equal parts); None for α = 1 alone.
    """
    n_layers = int(model.cfg.n_layers)
    examples = encode_to_score(
        tokenizer_of(model), data, tokens="prompt", template=template, count_beginning=count_beginning
    )
    pairs = None
    if isinstance(reference, PromptSet):
        pairs = _paired(model.tokenizer, data, reference, examples, template)
    alphas = [1.0] if steps is None else [(i + 0.5) / steps for i in range(steps)]
    keys: list[Key] = [(site, layer) for site in sites for layer in range(n_layers)]

    def part(share: list[int]) -> dict[tuple[str, int], Moments]:
        running, mine = RunningMoments(), [examples[row] for row in share]
        budget = batch_tokens(model, mine, max_tokens, gradients=True)
        for batch in track(list(batches(mine, budget)), "attribution", enabled=progress):
            if pairs is None:
                values = {key: _value(reference, key) for key in keys}
            else:
                values = _activations(model, pad_left([pairs[share[row]] for row in batch.rows]), keys)
            total = dict.fromkeys(keys, torch.zeros((), dtype=torch.float64))
            for alpha in alphas:
                for key, rows in _one_pass(model, batch, answers, values, alpha).items():
                    total[key] = total[key] + rows / len(alphas)
            for (site, layer), rows in total.items():
                running.add(site, layer, rows, f"activations or gradients at {unit_hook(site, layer)}")
        return running.by_key

    running = RunningMoments(merged(found for _, found in spread(model, examples, part, "attribution scores")))
    return {site: running.stack(site, n_layers) for site in sites}


def mean_activations(model: HookedModel, data: PromptSet, **options: Any) -> dict[Site, dict[int, Tensor]]:
    """Mean activation of every unit over the prompt tokens of ``data``; ``options`` are ``activation_moments``'."""
    moments = activation_moments(model, data, tokens="prompt", **options)
    return {site: dict(enumerate(m.mean.float())) for site, m in moments.items()}


def _one_pass(
    model: HookedModel, batch: Batch, answers: AnswerTokens, reference: Mapping[Key, Tensor], alpha: float
) -> dict[Key, Tensor]:
    distance: dict[Key, Tensor] = {}
    moved: dict[Key, Tensor] = {}
    counts = chosen_positions(batch, "prompt")

    def move(key: Key) -> HookFn:
        def hook(activation: Tensor) -> Tensor:
            base = reference[key].to(activation)
            base = base.reshape(activation.shape if base.ndim > 2 else activation.shape[2:])
            here = counts.to(activation.device).reshape(*counts.shape, *(1,) * (activation.ndim - 2))
            base = torch.where(here, base, activation.detach())
            distance[key] = (activation - base).detach()
            moved[key] = tracked(activation if alpha == 1 else base + alpha * (activation - base))
            return moved[key]

        return hook

    with only_activations(model), attached(model, {unit_hook(*key): move(key) for key in reference}):
        metric = answers.difference(logits(model, batch)[:, -1]).sum()  # left padding: the last token is at -1
        gradients = torch.autograd.grad(metric, list(moved.values()))
    return {
        key: unit_products(distance[key], gradient, counts).cpu()
        for key, gradient in zip(moved, gradients, strict=True)
    }


def _value(reference: Any, key: Key) -> Tensor:
    site, layer = key
    try:
        value: Tensor = reference[site][layer]
    except (KeyError, IndexError):
        raise ValueError(f"the reference has no values for the {site} units of layer {layer}") from None
    return value.flatten()


def _activations(model: HookedModel, batch: Batch, keys: Sequence[Key]) -> dict[Key, Tensor]:
    seen: dict[Key, Tensor] = {}

    def look(key: Key) -> HookFn:
        def hook(activation: Tensor) -> None:
            seen[key] = activation.detach().clone()

        return hook

    with torch.no_grad(), attached(model, {unit_hook(*key): look(key) for key in keys}):
        run(model, batch.to(device_of(model)))
    return seen


def _paired(
    tokenizer: Any, data: PromptSet, reference: PromptSet, examples: Sequence[Encoded], template: str
) -> list[Encoded]:
    if len(reference) != len(data):
        raise ValueError(
            f"paired counterfactuals go one by one: {data.name!r} has {len(data)} prompts, {reference.name!r} "
            f"{len(reference)}"
        )
    others = encode(tokenizer, reference, template=template)
    for i, (mine, other) in enumerate(zip(examples, others, strict=True)):
        if len(mine) != len(other):
            raise ValueError(
                f"prompt {i} has {len(mine)} tokens and its counterfactual {len(other)}; positions can be compared "
                f"only in pairs of equal length: {data.prompts[i]!r}, {reference.prompts[i]!r}"
            )
    return others
