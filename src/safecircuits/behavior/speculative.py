"""Speculative decoding under many scaled models at once, with the layers in which models are alike computed once.

A scaled model mostly says what another one has said, so that answer is the draft: it is fed along with the prompt, and
one pass verifies how much of it each model would have written itself (Leviathan et al., 2023, for greedy decoding).
Tokens after the first that is rejected are masked out, and from there the answer goes on in the same way, drafted from
answers that began like it. What comes out is what each model writes alone, to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from safecircuits.base.progress import track
from safecircuits.behavior.decoding import Writer, best_tokens
from safecircuits.hooks.branching import Branches
from safecircuits.hooks.passes import Runner
from safecircuits.hooks.scale import RowScaling
from safecircuits.model.forward import Decoder
from safecircuits.prompts.batching import CALL_TOKENS, Batch, each_batch, pad_left, without_prefix
from safecircuits.prompts.prompt_set import Encoded


@dataclass(frozen=True)
class SpeculativeDecoding:
    """All models on all prompts; ``run`` gives the tokens of each.

    Attributes:
        drafts: for each prompt the tokens it may be answered with; none are needed.
        max_tokens: tokens in a batch, in the layer with the most rows.
    """

    runner: Runner
    examples: tuple[Encoded, ...]
    drafts: Sequence[Sequence[int]]
    branches: Branches
    scaling: RowScaling
    writer: Writer
    max_tokens: int
    drafter: PrefixDrafter = field(default_factory=lambda: PrefixDrafter())

    @staticmethod
    def possible(runner: Runner, examples: Sequence[Encoded], max_new_tokens: int) -> bool:
        """Whether a pass may gain rows on its way, and positions that are masked out again change nothing."""
        return runner.can_branch and runner.counts_by_mask(max(map(len, examples)) + 2 * max_new_tokens)

    def run(self, progress: bool) -> list[list[list[int]]]:
        """Token ids by model and prompt."""
        # The last token of an answer is never fed.
        drafts = [tuple(draft[: self.writer.max_new_tokens - 1]) for draft in self.drafts]
        written: list[list[list[int]]] = [[[] for _ in self.examples] for _ in self.branches.group[0]]
        for draft in self.drafts:
            self.drafter.learn(draft)
        shared = self.runner.prefix_length(self.examples, 2 * self.writer.max_new_tokens)
        prefix = self._prefix(shared) if shared else None
        own = without_prefix(self.examples, shared)
        joined = [Encoded(e.ids + draft, e.response_start) for e, draft in zip(own, drafts, strict=True)]

        def work(batch: Batch) -> None:
            answers = self._batch(batch, [drafts[row] for row in batch.rows], prefix)
            for model, of_model in enumerate(answers):
                for row, tokens in zip(batch.rows, of_model, strict=True):
                    written[model][row] = tokens
                    self.drafter.learn(tokens)

        budget = max(1, self.max_tokens // self.branches.last)
        finished = each_batch(joined, work, budget, beside=shared, tight=True)
        each_done = (1 for n in finished for _ in range(n * len(written)))
        for _ in track(each_done, "completions", total=len(joined) * len(written), enabled=progress):
            pass
        return written

    def _prefix(self, shared: int) -> Decoder:
        prefix_ids = torch.tensor(self.examples[0].ids[:shared]).repeat(self.branches.first, 1)
        decoder, blocks = self.runner.decoder(), self.runner.blocks()
        with self.branches.attached(blocks, 1):
            self.scaling.select(self.branches.models(1))
            decoder.open(list(map(len, self.branches.members)))
            decoder.feed(prefix_ids, torch.ones_like(prefix_ids), blocks[-1], keep=True)
        return decoder

    def _batch(self, batch: Batch, drafts: Sequence[tuple[int, ...]], prefix: Decoder | None) -> list[list[list[int]]]:
        n, branches, models = len(batch), self.branches, self.branches.models(len(batch))
        if prefix is None:
            decoder = self.runner.decoder()
            decoder.open(list(map(len, models)))
        else:
            by_layer = [torch.arange(len(members)).repeat_interleave(n) for members in branches.members]
            decoder = prefix.rows(by_layer[0], by_layer)
        last = max(map(len, drafts)) + 1
        with branches.attached(self.runner.blocks(), n):
            self.scaling.select(models)
            ids, mask = (part.repeat(branches.first, 1) for part in (batch.input_ids, batch.attention_mask))
            said: list[list[int]] = decoder.steps(ids, mask, last, best_tokens).tolist()
        answers: list[list[list[int]]] = []
        open_: list[tuple[int, int, int]] = []  # model, prompt, and how much of the draft is not its answer
        for model, leaf in enumerate(branches.group[-1]):
            answers.append([])
            for place, draft in enumerate(drafts):
                tokens, wrong = self._agreed(said[leaf * n + place][last - 1 - len(draft) :], draft)
                answers[-1].append(tokens)
                if wrong is not None:
                    open_.append((model, place, wrong))
        if open_:
            self._go_on(decoder, open_, [answers[model][place] for model, place, _ in open_], n)
        return answers

    def _agreed(
        self, said: Sequence[int], draft: Sequence[int], begun: Sequence[int] = ()
    ) -> tuple[list[int], int | None]:
        """The tokens of an answer as far as they are known, and if it goes on, how many of the draft are not in it."""
        tokens = list(begun)
        for i, token in enumerate(said):
            if not self.writer.goes_on(tokens, token):
                return tokens, None
            if i == len(draft) or token != draft[i]:
                return tokens, len(draft) - i
        raise AssertionError("the last token said is beyond the draft")

    def _go_on(self, decoder: Decoder, rows: Sequence[tuple[int, int, int]], written: list[list[int]], n: int) -> None:
        """Write open answers to their end; the last token of each is yet to be fed."""
        models, prompts, wrong = (list(column) for column in zip(*rows, strict=True))
        by_layer = self.branches.rows(models, prompts, n)
        owner = torch.tensor(models)
        while written:
            decoder = decoder.rows(by_layer[0], by_layer)
            assert decoder.mask is not None
            places = torch.arange(decoder.mask.shape[1], 0, -1, device=decoder.device)
            seen = places > torch.tensor(wrong, device=decoder.device)[:, None]
            decoder.set_mask(decoder.mask * seen.to(decoder.mask))
            room = self.writer.max_new_tokens - 1
            guesses = [self.drafter.draft(tokens)[: room - len(tokens)] for tokens in written]
            most = worth_feeding(list(map(len, guesses)))
            guesses = [guess[:most] for guess in guesses]
            fed = pad_left([Encoded((tokens[-1], *guess), 0) for tokens, guess in zip(written, guesses, strict=True)])
            self.scaling.select(owner)
            width = fed.input_ids.shape[1]
            said: list[list[int]] = decoder.steps(fed.input_ids, fed.attention_mask, width, best_tokens).tolist()
            going: list[int] = []
            wrong = []
            for row, (tokens, guess) in enumerate(zip(written, guesses, strict=True)):
                more, dropped = self._agreed(said[row][width - 1 - len(guess) :], guess, tokens)
                tokens += more[len(tokens) :]
                if dropped is not None:
                    going.append(row)
                    wrong.append(dropped)
            written, owner = [written[row] for row in going], owner[going]
            by_layer = [torch.tensor(going)] * len(by_layer)


def worth_feeding(lengths: Sequence[int]) -> int:
    """Guessed tokens to feed at once: the rest of the longest guesses may cost less later than padding all others."""
    longest = max(lengths)

    def tokens(most: int) -> int:
        later = sum(length > most for length in lengths)
        return len(lengths) * most + (longest - most) * later + (CALL_TOKENS if later else 0)

    return min(sorted(set(lengths)), key=tokens)


class PrefixDrafter:
    """Drafts by lookup: how answers have gone on after each prefix."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], Counter[int]] = {}

    def learn(self, tokens: Sequence[int]) -> None:
        """Count an answer."""
        for i in range(1, len(tokens)):
            self._next.setdefault(tuple(tokens[:i]), Counter())[tokens[i]] += 1

    def draft(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """What mostly came after these tokens, as far as more than half of the answers agree."""
        known, n = tuple(tokens), len(tokens)
        while known in self._next:
            after = self._next[known]
            token, count = after.most_common(1)[0]
            if 2 * count <= after.total():
                break
            known = (*known, token)
        return known[n:]
