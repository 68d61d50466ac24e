"""Activation patching: the residual stream of other prompts in a run, at the post-instruction tokens.

Patching changes nothing before the patched positions, and nothing below the patched layer. So what stands before them
is computed once and kept as keys and values, and one pass over the patched positions serves all layers: it takes a
further row for each layer from which on the patched stream goes its own way (``Branches``). Where a model allows
neither, each layer costs a pass over whole prompts; the values are the same to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safecircuits.base.progress import track
from safecircuits.hooks.branching import Branches
from safecircuits.hooks.passes import Runner, running
from safecircuits.model.attach import HookFn
from safecircuits.model.forward import Decoder
from safecircuits.model.memory import batch_tokens
from safecircuits.model.sites import HookedModel, resid_post
from safecircuits.prompts.batching import Batch, each_batch, pad_left, without_prefix
from safecircuits.prompts.prompt_set import Encoded
from safecircuits.prompts.rendering import render

Read = Callable[[Float[Tensor, "row d_vocab"]], Float[Tensor, " row"]]
"""What is read off the logits of the first answer token."""


def count_post_instruction_tokens(tokenizer: Any, examples: Sequence[Encoded], template: str = "auto") -> int:
    """How many post-instruction tokens there are: last tokens that are the template's own and the same in all prompts.

    At least 1, the last token. What a model gathers about an instruction after reading it, it gathers there.
    """
    marker = "instruction"
    closing = render(tokenizer, marker, template).rpartition(marker)[2]
    longest = len(tokenizer(closing, add_special_tokens=False)["input_ids"]) if closing else 0
    longest = min(longest, min(len(example) for example in examples) - 1)
    shared = 0
    while shared < longest and len({example.ids[-1 - shared] for example in examples}) == 1:
        shared += 1
    return max(1, shared)


@dataclass(frozen=True)
class CachedRun:
    """Prompts with what the model makes of them: first answer logits, and the residual stream after every layer."""

    examples: tuple[Encoded, ...]
    logits: Float[Tensor, "prompt d_vocab"]
    """Float64 on the CPU."""
    residuals: Float[Tensor, "layer prompt pos d_model"]
    """After every layer but the last, at the last ``pos`` positions, in the model's dtype, on the CPU."""
    max_tokens: int

    @classmethod
    def of(
        cls, model: HookedModel, examples: Sequence[Encoded], positions: int, max_tokens: int | None = None
    ) -> CachedRun:
        """Run the prompts once.

        Raises:
            FloatingPointError: if the logits are not finite.
        """
        n_layers, dtype = int(model.cfg.n_layers), next(iter(model.parameters())).dtype
        residuals = torch.empty(n_layers - 1, len(examples), positions, int(model.cfg.d_model), dtype=dtype)
        by_row: dict[int, Tensor] = {}
        rows: list[int] = []

        def keep(layer: int) -> HookFn:
            def store(resid: Tensor) -> None:
                if rows:  # of the endings; left padding aligns the last positions
                    residuals[layer, rows] = resid[:, -positions:].cpu()

            return store

        def work(ends: Batch, decoder: Decoder) -> None:
            with _of(rows, ends):
                logits = _finite(decoder.step(ends.input_ids, ends.attention_mask)).double().cpu()
            by_row.update(zip(ends.rows, logits, strict=True))

        budget = batch_tokens(model, examples, max_tokens, cached=True)
        with running(model, {resid_post(layer): keep(layer) for layer in range(n_layers - 1)}) as runner:
            for _ in _each_ending(runner, examples, positions, work, budget):
                pass
        return cls(tuple(examples), torch.stack([by_row[row] for row in range(len(examples))]), residuals, budget)

    def patched(
        self, model: HookedModel, other: CachedRun, read: Read, *, progress: bool = False
    ) -> Float[Tensor, "layer prompt"]:
        """What ``read`` says with the residual stream of ``other`` patched in after each layer, prompt by prompt.

        After the last layer the patched position is all that the logits see, so the last row is read off ``other``.

        Args:
            other: a run of as many prompts, at as many positions: its k-th prompt is put into the k-th of this one.
        """
        n_layers = int(model.cfg.n_layers)
        out = torch.empty(n_layers, len(self.examples), dtype=torch.float64)
        out[-1] = read(other.logits)
        longest = max(map(len, self.examples))
        with running(model) as runner:
            shares = runner.can_branch and runner.per_token and runner.counts_by_mask(longest)
            steps = self._all_layers(runner, other, read, out[:-1]) if shares else None
            if steps is not None:
                _finish(steps, len(self.examples), progress)
        if not shares:
            _finish(self._layer_by_layer(model, other, read, out[:-1]), (n_layers - 1) * len(self.examples), progress)
        return out

    def _all_layers(
        self, runner: Runner, other: CachedRun, read: Read, out: Float[Tensor, "layer prompt"]
    ) -> Iterator[int]:
        """One pass over the patched positions for all layers."""
        n_patched, positions = len(out), other.residuals.shape[2]
        if not n_patched:
            return
        blocks = runner.blocks()
        branches = Branches([{layer + 1: 0.0} for layer in range(n_patched)], len(blocks))

        def work(ends: Batch, decoder: Decoder) -> None:
            n = len(ends)
            prompts = torch.arange(n)
            by_layer = [prompts.repeat(len(members)) for members in branches.members]
            values = other.residuals[:, list(ends.rows)]
            with branches.attached(blocks, n), _put(blocks, branches, values):
                parted = decoder.rows(by_layer[0], by_layer)
                logits = _finite(parted.step(ends.input_ids, ends.attention_mask))
            found = read(logits).double().cpu()
            for layer, group in enumerate(branches.group[-1]):
                out[layer, list(ends.rows)] = found[group * n : (group + 1) * n]

        yield from _each_ending(runner, self.examples, positions, work, max(1, self.max_tokens // branches.last))

    def _layer_by_layer(
        self, model: HookedModel, other: CachedRun, read: Read, out: Float[Tensor, "layer prompt"]
    ) -> Iterator[int]:
        """A pass for each layer, over the patched positions if they can be told from the rest, else over all."""
        positions = other.residuals.shape[2]
        for layer, values in enumerate(other.residuals):
            rows: list[int] = []

            def patch(resid: Tensor, values: Tensor = values, rows: list[int] = rows) -> Tensor | None:
                if not rows:
                    return None
                changed = resid.clone()
                changed[:, -positions:] = values[rows].to(resid)
                return changed

            def work(ends: Batch, decoder: Decoder, layer: int = layer, rows: list[int] = rows) -> None:
                with _of(rows, ends):
                    logits = _finite(decoder.step(ends.input_ids, ends.attention_mask))
                out[layer, list(ends.rows)] = read(logits).double().cpu()

            with running(model, {resid_post(layer): patch}) as runner:
                yield from _each_ending(runner, self.examples, positions, work, self.max_tokens)


@contextmanager
def _of(rows: list[int], ends: Batch) -> Iterator[None]:
    """Inside, ``rows`` names the prompts whose endings run; it is empty while what stands before them does."""
    rows[:] = ends.rows
    try:
        yield
    finally:
        rows.clear()


@contextmanager
def _put(
    blocks: Sequence[nn.Module], branches: Branches, values: Float[Tensor, "layer prompt pos d_model"]
) -> Iterator[None]:
    """Before each layer, the other stream in the rows that part there."""
    n = values.shape[1]
    handles = []
    try:
        for layer, mine in enumerate(values):
            first = branches.group[layer + 1][layer] * n
            handles.append(blocks[layer + 1].register_forward_pre_hook(_Replaced(torch.arange(first, first + n), mine)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Replaced:
    per_token = True

    def __init__(self, rows: Int[Tensor, " row"], values: Float[Tensor, "row pos d_model"]) -> None:
        self.rows, self.values = rows, values

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = args
        return (hidden.index_copy(0, self.rows.to(hidden.device), self.values.to(hidden)), *others)


def _each_ending(
    runner: Runner, examples: Sequence[Encoded], positions: int, work: Callable[[Batch, Decoder], None], budget: int
) -> Iterator[int]:
    """Do ``work`` on batches of the last ``positions`` tokens, with a decoder that holds what stands before them.

    Where prompts cannot be taken apart, ``work`` gets whole ones and an empty decoder. Yields how many are done.
    """
    if not runner.per_token or not runner.counts_by_mask(max(map(len, examples))):
        yield from each_batch(examples, lambda batch: work(batch, runner.decoder()), budget)
        return
    begun = [Encoded(e.ids[:-positions], len(e) - positions, min(e.beginning, len(e) - positions)) for e in examples]
    shared, block = runner.prefix_length(begun), runner.block(int(runner.model.cfg.n_layers) - 1)
    prefix: Decoder | None = None
    if shared:
        start = pad_left([Encoded(begun[0].ids[:shared], shared)])
        prefix = runner.decoder()
        prefix.feed(start.input_ids, start.attention_mask, block, keep=True)

    def part(batch: Batch) -> None:
        decoder = runner.decoder() if prefix is None else prefix.rows(torch.zeros(len(batch), dtype=torch.long))
        decoder.feed(batch.input_ids, batch.attention_mask, block, keep=True)
        work(pad_left([Encoded(examples[row].ids[-positions:], 0) for row in batch.rows], batch.rows), decoder)

    yield from each_batch(without_prefix(begun, shared), part, budget, beside=shared + positions, tight=True)


def _finish(steps: Iterator[int], total: int, progress: bool) -> None:
    each_done = (1 for n in steps for _ in range(n))
    for _ in track(each_done, "patched residual streams", total=total, enabled=progress):
        pass


def _finite(logits: Tensor) -> Tensor:
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the logits are not finite, so nothing can be compared")
    return logits
