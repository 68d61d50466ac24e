"""What the base itself says: continuations of many prompts at once, with the hidden states that they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Choose = Callable[[Float[Tensor, "text vocab"]], Int[Tensor, " text"]]


@dataclass(frozen=True)
class Answer:
    """What a model says after a prompt.

    Attributes:
        tokens: without the end of the turn unless ``ended`` is true, when it is the last of them.
        own: the last hidden states, after the last norm, that predict each of ``tokens``.
        ended: whether the turn ended.
    """

    tokens: list[int]
    own: Float[Tensor, "token d_model"]
    ended: bool


def greedy(logits: Float[Tensor, "text vocab"]) -> Int[Tensor, " text"]:
    """The likeliest token."""
    return logits.argmax(-1)


@torch.no_grad()
def answers(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int, choose: Choose = greedy
) -> list[Answer]:
    """Up to ``most`` tokens after each prompt, all at once; a text that ended is decoded no further.

    Args:
        model: a plain Hugging Face model.
        prompts: token ids.
        choose: the next token of each text from its logits.
    """
    from transformers import DynamicCache

    length, pad = max(map(len, prompts)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    places, cache = (mask.cumsum(1) - 1).clamp(min=0), DynamicCache()
    rows = list(range(len(prompts)))
    tokens: list[list[int]] = [[] for _ in prompts]
    own: list[list[Tensor]] = [[] for _ in prompts]
    for _ in range(most):
        hidden = model.model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        chosen = choose(model.lm_head(hidden).float())
        for row, token, state in zip(rows, chosen.tolist(), hidden, strict=True):
            tokens[row].append(token)
            own[row].append(state)
        going_on = (chosen != tokenizer.eos_token_id).nonzero()[:, 0]
        if not len(going_on):
            break
        if len(going_on) < len(rows):
            cache.batch_select_indices(going_on)
            rows = [rows[i] for i in going_on.tolist()]
        ids, places = chosen[going_on, None], places[going_on, -1:] + 1
        mask = torch.cat([mask[going_on], torch.ones_like(ids)], 1)
    return [
        Answer(said, torch.stack(states), said[-1] == tokenizer.eos_token_id)
        for said, states in zip(tokens, own, strict=True)
    ]
