"""Greedy completions, batched, kept raw so that they can be judged again without generating again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.cost import timed
from safecircuits.behavior.decoding import Steps, Until, Writer, decode_greedily
from safecircuits.behavior.decoding import end_tokens as end_tokens
from safecircuits.hooks.lockstep import LockstepDecoder, PairRunner, UnitPatching
from safecircuits.hooks.passes import Runner, running
from safecircuits.hooks.scale import RowScaling
from safecircuits.model.forward import Decoder
from safecircuits.model.memory import batch_tokens
from safecircuits.model.shares import in_order, spread
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import MAX_TOKENS, Batch, each_batch, without_prefix
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.prompts.templates import stop_string


@checked
def generate(
    model: HookedModel,
    prompts: PromptSet | Sequence[str],
    *,
    max_new_tokens: int = 16,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    until: Until | None = None,
    token_ids: list[list[int]] | None = None,
    progress: bool = False,
) -> Completions:
    """Greedy completions of at most ``max_new_tokens`` tokens; hooks on the model stay in force.

    Prompts are put into the chat template, batched and left-padded. A prompt leaves its batch when its completion
    ends, and the prefix that all prompts share is computed once; with hooks of your own on the model, which may depend
    on the whole batch, neither is done. With a plain-text template, a completion ends before the heading with which the
    model would ask itself the next question (``stop_string``).

    Args:
        max_tokens: tokens in one batch of prompts, padding included; 8,192 unless given, or what fits into free memory.
        until: ends a completion early. The completions are then marked as cut.
        token_ids: a list that gets the tokens of each completion, as ``generate_scaled`` takes for its drafts.

    Raises:
        ValueError: if ``max_new_tokens`` is not positive.
        FloatingPointError: if the logits are not finite, which greedy decoding would hide.

    Examples:
        >>> answers = sc.generate(model, ["how should i burn this tailor quickly ?"])
        >>> answers.texts
        ('i cannot help with that .',)
    """
    require_room(max_new_tokens)
    prompts = as_prompt_set(prompts)
    examples = encode(tokenizer_of(model), prompts, template=template, system=system)
    writer = Writer(model, max_new_tokens, until, stop_string(model.tokenizer, template))
    written = _alone(model, examples, writer, max_tokens, progress)
    if token_ids is not None:
        token_ids += written
    return completions_of(prompts, written, writer)


def continuations(
    model: HookedModel,
    examples: Sequence[Encoded],
    max_new_tokens: int,
    *,
    max_tokens: int | None = None,
    until: Until | None = None,
    stop: str | None = None,
    progress: bool = False,
) -> tuple[list[str], list[int], list[bool]]:
    """What the model writes after each example, greedily, as decoded; in how many tokens; and whether it ended it.

    Args:
        stop: the heading of the next question (``stop_string``), which is no part of a text.
    """
    writer = Writer(model, max_new_tokens, until, stop)
    written = _alone(model, examples, writer, max_tokens, progress)
    return writer.texts(written), list(map(len, written)), list(map(writer.ended, written))


def written_tokens(
    model: HookedModel, examples: Sequence[Encoded], max_new_tokens: int, stop: str | None, max_tokens: int | None
) -> list[list[int]]:
    """The tokens that the model writes after each example, greedily; ``stop`` as in ``continuations``."""
    return _alone(model, examples, Writer(model, max_new_tokens, None, stop), max_tokens, progress=False)


def require_room(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")


def completions_of(prompts: PromptSet, written: list[list[int]], writer: Writer) -> Completions:
    texts = tuple(text.strip() for text in writer.texts(written))
    lengths = tuple(map(len, written))
    if writer.until is not None:
        return Completions(prompts, texts, writer.until.reason, tokens=lengths)
    return Completions(prompts, texts, ended=tuple(map(writer.ended, written)), tokens=lengths)


@dataclass(frozen=True)
class Jobs:
    """What is to be completed: prompts, and which of several models in one (scaled, patched) each of them is for."""

    examples: tuple[Encoded, ...]
    owner: tuple[int, ...]
    max_tokens: int


def _alone(
    model: HookedModel,
    examples: Sequence[Encoded],
    writer: Writer,
    max_tokens: int | None,
    progress: bool,
) -> list[list[int]]:
    def part(share: list[int]) -> list[list[int]]:
        return _written(model, [examples[row] for row in share], writer, max_tokens, progress)

    return in_order(spread(model, examples, part, "completions"))


def _written(
    model: HookedModel, examples: Sequence[Encoded], writer: Writer, max_tokens: int | None, progress: bool
) -> list[list[int]]:
    """Token ids of each example, by this process."""
    if hasattr(model, "greedy_decoder"):  # one with virtual tokens, which has no hook points
        with torch.inference_mode():
            return _in_batches(examples, lambda _: model.greedy_decoder(), max_tokens or MAX_TOKENS, writer, progress)
    budget = batch_tokens(model, examples, max_tokens, more=writer.max_new_tokens, cached=True)
    jobs = Jobs(tuple(examples), (0,) * len(examples), budget)
    with running(model) as runner:
        return decode_all(runner, jobs, None, writer, progress)


def decode_all(
    runner: Runner | PairRunner,
    jobs: Jobs,
    several: RowScaling | UnitPatching | None,
    writer: Writer,
    progress: bool,
) -> list[list[int]]:
    """Token ids of each job. The prefix that all prompts share is computed and cached once for each of several models.

    Args:
        several: what makes several models of one, and is told which of them each row of a pass is.
    """
    ready = prepared(runner, jobs, several, writer.max_new_tokens)
    return _in_batches(
        ready.examples,
        ready.decoder,
        jobs.max_tokens,
        writer,
        progress,
        beside=ready.shared,
        select=ready.select,
        drop=runner.drops_finished,
    )


@dataclass(frozen=True)
class Prepared:
    """What is left to be fed of each job, behind the prefix that all share.

    Attributes:
        decoder: what decodes a batch of jobs, given by their places.
        select: to be told which jobs the next passes are of.
        shared: tokens of the prefix, which is in the cache of each decoder.
    """

    examples: Sequence[Encoded]
    decoder: Callable[[Sequence[int]], Steps]
    select: Callable[[Sequence[int]], None]
    shared: int


def prepared(
    runner: Runner | PairRunner, jobs: Jobs, several: RowScaling | UnitPatching | None, beyond: int
) -> Prepared:
    """The prefix that all jobs share, computed once for each of several models; ``beyond`` tokens may follow a job."""
    shared = runner.prefix_length(jobs.examples, beyond)
    owner = torch.tensor(jobs.owner)
    prefix: Decoder | LockstepDecoder | None = None

    def select(models: torch.Tensor) -> None:
        if several is not None:
            several.select(models)

    if shared:
        n_models = int(owner.max()) + 1
        prefix_ids = torch.tensor(jobs.examples[0].ids[:shared]).repeat(n_models, 1)
        select(torch.arange(n_models))
        prefix = runner.decoder()
        prefix.feed(
            prefix_ids, torch.ones_like(prefix_ids), runner.block(int(runner.model.cfg.n_layers) - 1), keep=True
        )

    def decoder(rows: Sequence[int]) -> Steps:
        return runner.decoder() if prefix is None else prefix.rows(owner[list(rows)])

    left = without_prefix(jobs.examples, shared) if shared else jobs.examples
    return Prepared(left, decoder, lambda rows: select(owner[list(rows)]), shared)


def _in_batches(
    examples: Sequence[Encoded],
    decoder: Callable[[Sequence[int]], Steps],
    max_tokens: int,
    writer: Writer,
    progress: bool,
    *,
    beside: int = 0,
    select: Callable[[list[int]], None] = lambda _: None,
    drop: bool = True,
) -> list[list[int]]:
    """Token ids of each example.

    Args:
        decoder: what decodes a batch of examples, given by their places.
        beside: tokens in the cache before those of each example.
        select: told which examples the next steps are of.
        drop: whether finished ones leave their batch.
    """
    written: list[list[int]] = [[] for _ in examples]

    def work(batch: Batch) -> None:
        answers: list[list[int]] = [[] for _ in batch.rows]
        decode_greedily(
            decoder(batch.rows),
            batch.input_ids,
            batch.attention_mask,
            answers,
            writer,
            select=lambda alive: select([batch.rows[place] for place in alive]),
            drop=drop,
        )
        for row, tokens in zip(batch.rows, answers, strict=True):
            written[row] = tokens

    finished = each_batch(examples, work, max_tokens, beside=beside)
    if progress:
        finished = timed(finished, len(examples))
    each_done = (1 for n in finished for _ in range(n))
    for _ in track(each_done, "completions", total=len(examples), enabled=progress):
        pass
    return written
