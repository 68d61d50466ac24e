"""Greedy decoding of one batch, and when a completion is finished."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from safecircuits.model.bridge import generation_config_of
from safecircuits.model.sites import HookedModel


class Until(Protocol):
    """Says of an unfinished completion that it is enough, with ``left`` tokens still to come; ``reason`` names it."""

    reason: str

    def __call__(self, text: str, left: int) -> bool: ...


class Steps(Protocol):
    """What decodes a batch over a key/value cache: a ``Decoder``, or that of a model with virtual tokens."""

    def step(self, input_ids: Int[Tensor, "batch new"], attention_mask: Int[Tensor, "batch new"], /) -> Tensor:
        """Feed ``new`` further positions of each row; the logits after the last of them, ``[batch d_vocab]``."""

    def rows(self, index: Int[Tensor, " row"], /) -> Steps:
        """What goes on with some of the rows."""


class Writer:
    """Turns tokens into texts, and says when one is finished: at ``max_new_tokens``, its end, ``until``, or ``stop``.

    Args:
        stop: the heading of the next question, which a model may write itself (``stop_string``): a text ends in front
            of a line that begins with it.
    """

    def __init__(self, model: HookedModel, max_new_tokens: int, until: Until | None, stop: str | None = None) -> None:
        self.tokenizer, self.max_new_tokens, self.until = model.tokenizer, max_new_tokens, until
        self._stop = None if stop is None else re.compile(rf"(?:^|\n)[ \t]*{re.escape(stop)}")
        self.ends = end_tokens(model)
        self._enough: dict[tuple[int, ...], bool] = {}

    def texts(self, written: Sequence[Sequence[int]]) -> list[str]:
        decoded: list[str] = self.tokenizer.batch_decode(list(written), skip_special_tokens=True)
        return decoded if self._stop is None else [self._stop.split(text, maxsplit=1)[0] for text in decoded]

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether the model has ended a text, or gone on to the next question, and not the limit of tokens ended it."""
        return len(tokens) < self.max_new_tokens or self._stopped(tokens)

    def _stopped(self, tokens: Sequence[int]) -> bool:
        if self._stop is None:
            return False
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return self._stop.search(text) is not None

    def goes_on(self, tokens: list[int], new: int) -> bool:
        """Add a token unless it ends the text; whether another may follow.

        Raises:
            FloatingPointError: for a token below 0, which stands for logits that are not finite.
        """
        if new < 0:
            raise FloatingPointError("the logits are not finite; a smaller alpha or another dtype may help")
        if new in self.ends:
            return False
        tokens.append(new)
        left = self.max_new_tokens - len(tokens)
        if not left or self._stopped(tokens):
            return False
        if self.until is None:
            return True
        # Completions of many prompts begin alike, so most of these are met many times.
        key = tuple(tokens)
        if key not in self._enough:
            self._enough[key] = self.until(self.texts([tokens])[0].strip(), left)
        return not self._enough[key]


def decode_greedily(
    decoder: Steps,
    ids: Int[Tensor, "row new"],
    mask: Int[Tensor, "row new"],
    written: list[list[int]],
    writer: Writer,
    *,
    select: Callable[[list[int]], None],
    drop: bool,
) -> None:
    """Feed ``ids`` and what comes of them until every row of ``written`` is finished; tokens are added there.

    One small transfer from the device a step says which rows go on.

    Args:
        select: told before the first step, and whenever rows leave, which rows of ``written`` the batch holds.
        drop: whether finished rows leave the batch.
    """
    alive = list(range(len(written)))
    ended: set[int] = set()
    select(alive)
    while True:
        chosen = best_tokens(decoder.step(ids, mask))
        for row, token in zip(alive, chosen.tolist(), strict=True):
            if row not in ended and not writer.goes_on(written[row], token):
                ended.add(row)
        if len(ended) == len(written):
            return
        going = [place for place, row in enumerate(alive) if row not in ended]
        if drop and len(going) < len(alive):
            alive = [alive[place] for place in going]
            index = torch.tensor(going)
            decoder, chosen = decoder.rows(index), chosen[index.to(chosen.device)]
            select(alive)
        # A finished row that stays is fed anything.
        ids, mask = chosen.clamp(min=0)[:, None], torch.ones_like(chosen[:, None])


def best_tokens(logits: Tensor) -> Int[Tensor, "..."]:
    """The largest logit's token; -1 where it is not finite."""
    best, chosen = logits.max(-1)
    return torch.where(torch.isfinite(best), chosen, -1)


def end_tokens(model: HookedModel) -> set[int]:
    """Token ids that end a completion: the tokenizer's, and those of the model's generation settings."""
    ends = {model.tokenizer.eos_token_id}
    declared = getattr(generation_config_of(model), "eos_token_id", None)
    ends |= set(declared) if isinstance(declared, list | tuple) else {declared}
    return {end for end in ends if end is not None}
