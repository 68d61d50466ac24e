"""FLAP's own statistics, as its published code gathers them (An et al., AAAI 2024; ``BiasGPT`` in layerwrapper.py).

The paper defines a channel's fluctuation as its sample variance over the calibration samples, which is this library's
``ifv`` and ``wifv`` over tokens. The code does something else, prompt by prompt in their order. With x the inputs of
prompt N (from 0), and m the mean over prompts so far of each prompt's mean, this one's included:

    fluc ← fluc · (N − 1) / N + Σ_t (x_t − m)² / (N + 1),  and 0 for the first prompt

Its update means to multiply (x − m) by the deviation from the mean *before* this prompt, but the two are one tensor. So
it is no variance: it counts deviations from the new mean, drops the first prompt, depends on the order of prompts, and
grows with tokens a prompt. For WIFN it keeps the mean over prompts of Σ_t x_t². Its own standardisation is what makes
layers of any scale comparable; ``UnitScores`` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.progress import track
from safecircuits.base.vocabulary import Site, TokenChoice
from safecircuits.hooks.passes import running
from safecircuits.model.attach import HookFn
from safecircuits.model.beginning import chosen_positions, encode_to_score
from safecircuits.model.memory import batch_tokens
from safecircuits.model.sites import HookedModel, tokenizer_of, unit_hook
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.units.moments import Moments


class _Running:
    """FLAP's recursion for the channels of one sublayer, in float64."""

    def __init__(self, fluctuation: bool) -> None:
        self.fluctuation, self.n = fluctuation, 0
        self.mean: Tensor | float = 0.0
        self.value: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """The inputs of one prompt, ``[token channel]``."""
        x, n = x.double(), self.n
        self.mean = self.mean * (n / (n + 1)) + x.mean(0) / (n + 1)
        if not self.fluctuation:
            self.value = self.value * (n / (n + 1)) + x.square().sum(0) / (n + 1)
        elif n:
            self.value = self.value * ((n - 1) / n) + (x - self.mean).square().sum(0) / (n + 1)
        self.n += 1


def flap_statistics(
    model: HookedModel,
    data: PromptSet,
    *,
    fluctuation: bool,
    tokens: TokenChoice,
    sites: Sequence[Site],
    template: str,
    max_tokens: int | None,
    progress: bool,
    count_beginning: bool = False,
) -> dict[Site, Moments]:
    """Its ``fluc_inp`` or ``scaler_inp`` of each channel as the mean, ``[layer, channel]`` by site, over all prompts.

    FLAP counts every position (``count_beginning=True``) of texts without a template; here that is the caller's choice.

    Raises:
        ValueError: for fewer than two prompts with tokens that count, after which every fluctuation is 0.
        FloatingPointError: for a statistic that is not finite.
    """
    examples = encode_to_score(
        tokenizer_of(model), data, tokens=tokens, template=template, count_beginning=count_beginning
    )
    n_layers = int(model.cfg.n_layers)
    seen = {(site, layer): _Running(fluctuation) for site in sites for layer in range(n_layers)}
    chosen: Bool[Tensor, "batch pos"] = torch.zeros(0, 0, dtype=torch.bool)

    def watch(running_: _Running) -> HookFn:
        def update(activation: Tensor) -> None:
            for row, mask in zip(activation.flatten(2), chosen.to(activation.device), strict=True):
                if bool(mask.any()):
                    running_.add(row[mask])

        return update

    budget = batch_tokens(model, examples, max_tokens)
    hooks = {unit_hook(site, layer): watch(one) for (site, layer), one in seen.items()}
    with running(model, hooks) as runner:
        last: Any = None if runner.other_hooks else runner.block(n_layers - 1)
        for start, end in track(_in_order(list(map(len, examples)), budget), "activations", enabled=progress):
            batch = pad_left(examples[start:end])
            chosen = chosen_positions(batch, tokens)
            runner.decoder().feed(batch.input_ids, batch.attention_mask, last)
    found: dict[Site, Moments] = {}
    for site in sites:
        each = [seen[site, layer] for layer in range(n_layers)]
        if each[0].n < 2:
            raise ValueError(
                f"FLAP's fluctuation needs at least two prompts with {tokens} tokens that count; {data.name!r} has "
                f"{each[0].n}"
            )
        values = torch.stack([torch.as_tensor(one.value) for one in each]).cpu()
        if not torch.isfinite(values).all():
            raise FloatingPointError(f"the activations at the {site} site are not finite")
        found[site] = Moments(each[0].n, values, torch.zeros_like(values))
    return found


def _in_order(lengths: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """Batches of consecutive prompts within the budget, as ranges."""
    batches, start = [], 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and max(lengths[start : end + 1]) * (end + 1 - start) <= max_tokens:
            end += 1
        batches.append((start, end))
        start = end
    return batches
