"""How the embedded models were made: five stages from one seed, in plain torch, read from top to bottom.

``base`` is trained from scratch to answer everything. The others start from base, rounded to float16 as it
is stored, and see a mixture of questions in which the harmful ones are refused (``unaligned``: answered).
They differ in what may move: everything, a block of layers, or a few MLP neurons. What may not move is
bit-identical to base.

The same seed gives the same weights on the same machine with the same versions (the number of threads is
part of the recipe). Other machines may add up in another order, so there the weights differ and only the
behaviour is alike. ``safecircuits.organism.stages`` runs all of this and keeps the result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safecircuits.organism.batches import Batches
from safecircuits.organism.recipe import Phase, Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


# --- what may move -----------------------------------------------------------------------------


def plant(recipe: Recipe, phase: Phase, rng: random.Random) -> dict[int, tuple[int, ...]]:
    """The MLP neurons of each layer that a phase is confined to; empty if it is not confined to neurons."""
    if not phase.neurons:
        return {}
    return {layer: tuple(sorted(rng.sample(range(recipe.d_mlp), phase.neurons))) for layer in phase.layers}


def trainable(model: LlamaForCausalLM, phase: Phase, units: dict[int, tuple[int, ...]]) -> dict[str, Tensor | None]:
    """The parameters that may move, by name, each with a 0/1 mask of its entries (None: all of them).

    Norms stay out of a planted block, so that all that is planted is a set of matrix entries.
    """
    import torch

    if not phase.layers:
        return {name: None for name, _ in model.named_parameters()}
    moving: dict[str, Tensor | None] = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("model.layers.") or parameter.ndim != 2:
            continue
        layer = int(name.split(".")[2])
        if layer not in phase.layers:
            continue
        if not phase.neurons:
            moving[name] = None
        elif ".mlp." in name:
            mask = torch.zeros_like(parameter)
            rows = torch.tensor(units[layer])
            if "down_proj" in name:  # (d_model, d_mlp): a neuron is a column
                mask[:, rows] = 1
            else:  # gate and up, (d_mlp, d_model): a neuron is a row
                mask[rows] = 1
            moving[name] = mask
    return moving


# --- training ----------------------------------------------------------------------------------


def _rate(step: int, phase: Phase) -> float:
    """Share of the learning rate at a step: a linear warm-up, then a cosine down to a tenth."""
    if step < phase.warmup:
        return (step + 1) / phase.warmup
    done = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained model of the recipe's size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=recipe.embedding_std)
    return model


def fit(
    model: LlamaForCausalLM,
    batches: Batches,
    moving: dict[str, Tensor | None],
    phase: Phase,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Train in place for the phase's steps; returns the mean loss of the last twenty."""
    import torch

    model.train()
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in moving)
    # Weight decay would move entries that have no gradient, and the masked ones must stay where they are.
    free = [parameters[name] for name in moving]
    optimizer = torch.optim.AdamW(free, lr=phase.lr, betas=(0.9, 0.95), weight_decay=0.0)
    masked = [(parameters[name], mask) for name, mask in moving.items() if mask is not None]
    losses: list[float] = []
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * _rate(step, phase)
        ids, mask, labels = batches.draw()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        for parameter, keep in masked:
            assert parameter.grad is not None
            parameter.grad.mul_(keep)
        torch.nn.utils.clip_grad_norm_(free, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, phase.steps)
    model.requires_grad_(True)
    return sum(losses[-20:]) / len(losses[-20:])


# --- in the same way every time ----------------------------------------------------------------


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Deterministic algorithms on a fixed number of threads; the caller's settings are given back afterwards."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            torch.set_num_threads(before[1])
