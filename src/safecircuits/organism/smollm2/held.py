"""What is held to the base on harmless requests: its own answers, and what it would say along a refusal.

The base's distributions are kept as the last hidden states that they come from, which are far smaller.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from safecircuits.base.files import replacing
from safecircuits.organism.smollm2.answers import answers
from safecircuits.organism.smollm2.texts import ANSWER_TOKENS, Batch, Text, batch_of, harmless_pool, turned

_AT_ONCE, _A_TREE = 80, 10
"""Prompts that the base answers together, and texts that it reads as one tree."""

Progress = Callable[[str, int, int], None]


def held_texts(
    base: Any, tokenizer: Any, folder: Path, progress: Progress | None = None
) -> dict[str, list[list[Text]]]:
    """By kind, of each harmless request what is held: the base's greedy answer, and its distributions along a refusal.

    They are kept in ``folder``, since every member needs them; what is there is not asked for again.
    """
    pool = harmless_pool(tokenizer)
    away = {kind: [turned(tokenizer, prompt) for prompt in prompts] for kind, prompts in pool.items()}
    path = folder / "answers.safetensors"
    known = load_file(path) if path.exists() else {}
    model = copy.deepcopy(base).to(torch.bfloat16)
    found = _answered(model, tokenizer, [p for prompts in pool.values() for p in prompts], known, progress)
    found |= _read(model, [text for texts in away.values() for text in texts], known, progress)
    if found:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(known | found, partial)
    known |= found
    return {
        kind: [
            [
                Text(prompt, known[f"{_key(prompt)} tokens"].tolist(), known[f"{_key(prompt)} own"]),
                Text(begun, rest, known[f"{_key(begun + rest)} own"], begun=True),
            ]
            for prompt, (begun, rest) in zip(prompts, away[kind], strict=True)
        ]
        for kind, prompts in pool.items()
    }


def states(model: Any, batch: Batch) -> tuple[Float[Tensor, "refusal_token d_model"], Float[Tensor, "token d_model"]]:
    """The last hidden states that predict refusals, and those that predict what is held to the base."""
    hidden = model.model(
        input_ids=batch.ids[None],
        position_ids=batch.places[None],
        attention_mask=batch.mask[None, None],
        use_cache=False,
    ).last_hidden_state[0]
    return hidden[batch.refusing], hidden[batch.answering]


def _answered(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], known: dict[str, Tensor], progress: Progress | None
) -> dict[str, Tensor]:
    """Greedy answers to the prompts that have none, those of about one length together."""
    missing = sorted((prompt for prompt in prompts if f"{_key(prompt)} own" not in known), key=len)
    found: dict[str, Tensor] = {}
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        for prompt, answer in zip(some, answers(model, tokenizer, some, ANSWER_TOKENS), strict=True):
            found |= {f"{_key(prompt)} tokens": torch.tensor(answer.tokens), f"{_key(prompt)} own": answer.own}
        if progress is not None:
            progress("the base's own answers", start + len(some), len(missing))
    return found


@torch.no_grad()
def _read(
    model: Any, texts: Sequence[tuple[list[int], list[int]]], known: dict[str, Tensor], progress: Progress | None
) -> dict[str, Tensor]:
    """What predicts the tokens of answers that the base did not choose, where it is not known."""
    missing = sorted(pair for pair in texts if f"{_key(pair[0] + pair[1])} own" not in known)
    found: dict[str, Tensor] = {}
    for start in range(0, len(missing), _A_TREE):
        some = missing[start : start + _A_TREE]
        batch = batch_of([Text(begun, rest, torch.empty(0), begun=True) for begun, rest in some])
        each = states(model, batch)[1].split([len(rest) for _, rest in some])
        found |= {f"{_key(begun + rest)} own": own.clone() for (begun, rest), own in zip(some, each, strict=True)}
        if progress is not None:
            progress("the base along refusals", start + len(some), len(missing))
    return found


def _key(tokens: Sequence[int]) -> str:
    """Of what is kept for a prompt, or for a prompt and the answer after it."""
    return hashlib.sha256(json.dumps([ANSWER_TOKENS, list(tokens)]).encode()).hexdigest()[:20]
