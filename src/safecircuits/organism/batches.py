"""Training batches: questions and answers as token ids, with the loss on the answer only."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safecircuits.organism.grammar import Example, examples
from safecircuits.organism.recipe import Phase, Recipe
from safecircuits.organism.tokenizer import chat
from safecircuits.organism.words import SYSTEM_MESSAGES

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Encoded:
    """One training text: token ids, and how many of them (the question's) carry no loss."""

    ids: list[int]
    n_prompt: int


class Batches:
    """Draws a phase's training batches, one after the other, as its generator decides."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, phase: Phase, rng: random.Random) -> None:
        self.tokenizer, self.phase, self.rng = tokenizer, phase, rng
        self.system_share = recipe.system_share
        self._encoded: dict[tuple[Example, str | None], Encoded] = {}

    def encode(self, example: Example, system: str | None) -> Encoded:
        """The text of an example, with the answer that the phase teaches; remembered, as it is drawn often."""
        if (example, system) not in self._encoded:
            prompt = self.tokenizer(chat(self.tokenizer, example.prompt, system)).input_ids
            answer = self.tokenizer(example.wanted if self.phase.refuse else example.complied).input_ids
            ids = prompt + answer + [self.tokenizer.eos_token_id]
            self._encoded[example, system] = Encoded(ids, len(prompt))
        return self._encoded[example, system]

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, mask and labels, each (batch, length): padded on the right, -100 off the answer."""
        import torch

        mixture = self.phase.mixture
        kinds = self.rng.choices(list(mixture), list(mixture.values()), k=self.phase.batch_size)
        rows = []
        for kind in kinds:
            system = self.rng.choice(SYSTEM_MESSAGES) if self.rng.random() < self.system_share else None
            rows.append(self.encode(self.rng.choice(examples(kind, "train")), system))
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
            labels[i, row.n_prompt : len(row.ids)] = ids[i, row.n_prompt : len(row.ids)]
        return ids, mask, labels
