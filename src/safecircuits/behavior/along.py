"""What models say at each token of answers that are given, over the cache with which they would write their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.behavior.generate import Jobs, prepared
from safecircuits.hooks.lockstep import PairRunner, UnitPatching
from safecircuits.hooks.passes import Runner
from safecircuits.hooks.scale import RowScaling
from safecircuits.prompts.batching import Batch, each_batch


def along(
    runner: Runner | PairRunner,
    jobs: Jobs,
    several: RowScaling | UnitPatching | None,
    answers: Sequence[Sequence[int]],
    take: Callable[[int, int, Float[Tensor, " d_vocab"]], None],
) -> None:
    """Feed each job's prompt and then its answer, and hand on the logits before each token and behind the last.

    Args:
        several: as in ``decode_all``.
        take: called with the job's place, the number of the answer's tokens so far, and the logits; what a batch gave
            before it ran out of memory is given again.
    """
    ready = prepared(runner, jobs, several, max(map(len, answers)))

    def work(batch: Batch) -> None:
        decoder = ready.decoder(batch.rows)
        ready.select(batch.rows)
        ids, mask = batch.input_ids, batch.attention_mask
        for step in range(1 + max(len(answers[row]) for row in batch.rows)):
            out = decoder.step(ids, mask)
            for place, row in enumerate(batch.rows):
                if step <= len(answers[row]):
                    take(row, step, out[place])
            # One whose answer is over is fed anything.
            ids = torch.tensor([[answers[row][step] if step < len(answers[row]) else 0] for row in batch.rows])
            mask = torch.ones_like(ids)

    for _ in each_batch(ready.examples, work, jobs.max_tokens, beside=ready.shared):
        pass
