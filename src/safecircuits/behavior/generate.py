"""Greedy completions, batched, kept raw so that they can be judged again without generating again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from safecircuits.batching import MAX_TOKENS, Batch, each_batch, without_prefix
from safecircuits.files import write_text
from safecircuits.forward import Decoder
from safecircuits.hooks.attach import hooks_in_force
from safecircuits.hooks.running import Runner, running
from safecircuits.hooks.scale import ComponentSet, RowScaling
from safecircuits.progress import track
from safecircuits.prompts import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.sites import HookedModel


class Until(Protocol):
    """Says of an unfinished completion that it is enough, with ``left`` tokens still to come; ``reason`` names it."""

    reason: str

    def __call__(self, text: str, left: int) -> bool: ...


@dataclass(frozen=True)
class Completions:
    """What a model answered, in the order of the prompts; special tokens are left out of the texts."""

    prompts: PromptSet
    texts: tuple[str, ...]
    cut: str | None = None
    """Why texts may end before their time (``Until.reason``): they cannot be judged by anything else. None: whole."""

    def __len__(self) -> int:
        return len(self.texts)

    def save(self, path: str | Path) -> Path:
        """Write JSON lines with ``prompt`` and ``completion``."""
        cut = {} if self.cut is None else {"cut": self.cut}
        lines = (
            json.dumps({"prompt": prompt, "completion": text, **cut}, ensure_ascii=False)
            for prompt, text in zip(self.prompts, self.texts, strict=True)
        )
        return write_text(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Completions:
        """Read what ``save`` wrote, to judge it again; the prompt set is named after the file and has no responses.

        Raises:
            ValueError: if the file is absent, empty or not such JSON lines.
        """
        path = Path(path)
        try:
            # Split at line feeds alone: a text may hold other line separators.
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
            prompts = PromptSet(path.stem, tuple(row["prompt"] for row in rows))
            return cls(prompts, tuple(str(row["completion"]) for row in rows), rows[0].get("cut"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"cannot read completions from {str(path)!r}: expected JSON lines with 'prompt' and 'completion', "
                f"as Completions.save writes them, but {type(error).__name__}: {error}"
            ) from error


def generate(
    model: HookedModel,
    prompts: PromptSet | Sequence[str],
    *,
    max_new_tokens: int = 16,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    until: Until | None = None,
    progress: bool = False,
) -> Completions:
    """Greedy completions of at most ``max_new_tokens`` tokens; hooks on the model stay in force.

    A prompt leaves its batch at the end of its text, and tokens that all prompts begin with are computed once; with
    hooks of your own on the model, which may look at whole batches, neither happens.

    Args:
        max_tokens: tokens in one batch of prompts, padding included, instead of the usual 8,192; fewer where memory
            runs out.
        until: ends a completion early. The completions are then marked as cut.

    Raises:
        ValueError: if ``max_new_tokens`` is not positive.
        FloatingPointError: if the logits are not finite, which greedy decoding would hide.
    """
    _check(max_new_tokens)
    prompts = as_prompt_set(prompts)
    examples = encode(model.tokenizer, prompts, template=template, system=system)
    texts = continuations(model, examples, max_new_tokens, max_tokens=max_tokens, until=until, progress=progress)
    return Completions(prompts, tuple(text.strip() for text in texts), until.reason if until else None)


def continuations(
    model: HookedModel,
    examples: Sequence[Encoded],
    max_new_tokens: int,
    *,
    max_tokens: int | None = None,
    until: Until | None = None,
    progress: bool = False,
) -> list[str]:
    """What the model writes after each example, greedily, as decoded; in the order of the examples."""
    if hasattr(model, "continuations"):  # a model that is no TransformerLens model and decodes by itself
        if until is not None:
            raise ValueError(f"a {type(model).__name__} writes its completions whole: leave out early stopping")
        own: list[str] = model.continuations(examples, max_new_tokens, max_tokens=max_tokens)
        return own
    jobs = _Jobs(tuple(examples), (0,) * len(examples), max_new_tokens, max_tokens or MAX_TOKENS, until)
    with running(model) as runner:
        return _decode_all(runner, jobs, None, progress)


def generate_scaled(
    model: HookedModel,
    prompts: PromptSet | Sequence[str],
    profiles: Sequence[Mapping[int, float]],
    *,
    components: ComponentSet = "all",
    max_new_tokens: int = 16,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    until: Until | None = None,
    progress: bool = False,
) -> list[Completions]:
    """``generate`` under ``scaled(model, profile)`` for each of ``profiles``, all decoded together in shared batches.

    The completions are those of one profile after another, up to rounding: a matrix product may round otherwise in a
    batch of another size, which turns the choice between two tokens of all but equal logits. With hooks of your own on
    the model the profiles do run one after another.

    Args:
        profiles: a mapping from layer to α each; layers that it leaves out are not scaled.
    """
    _check(max_new_tokens)
    prompts = as_prompt_set(prompts)
    examples = encode(model.tokenizer, prompts, template=template, system=system)
    n = len(prompts)
    _, per_token = hooks_in_force(model)
    groups = [list(profiles)] if per_token else [[profile] for profile in profiles]
    texts: list[str] = []
    for group in groups:
        owner = tuple(which for which in range(len(group)) for _ in range(n))
        jobs = _Jobs(tuple(examples) * len(group), owner, max_new_tokens, max_tokens or MAX_TOKENS, until)
        scaling = RowScaling(model, group, components=components)
        with running(model, scaling.hooks) as runner:
            texts += [text.strip() for text in _decode_all(runner, jobs, scaling, progress)]
    reason = until.reason if until else None
    return [Completions(prompts, tuple(texts[i * n : (i + 1) * n]), reason) for i in range(len(profiles))]


def end_tokens(model: HookedModel) -> set[int]:
    """Token ids that end a completion: the tokenizer's, and those of the model's generation settings."""
    ends = {model.tokenizer.eos_token_id}
    settings = getattr(getattr(model, "original_model", None), "generation_config", None)
    declared = getattr(settings, "eos_token_id", None)
    ends |= set(declared) if isinstance(declared, list | tuple) else {declared}
    return {end for end in ends if end is not None}


def _check(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")


@dataclass(frozen=True)
class _Jobs:
    """What is to be completed: prompts, and which scaled model each of them is for."""

    examples: tuple[Encoded, ...]
    owner: tuple[int, ...]
    max_new_tokens: int
    max_tokens: int
    until: Until | None


def _decode_all(runner: Runner, jobs: _Jobs, scaling: RowScaling | None, progress: bool) -> list[str]:
    """The text of each job. The beginning that all prompts share is computed once for each scaled model."""
    shared = runner.prefix_length(jobs.examples, jobs.max_new_tokens)
    owner = torch.tensor(jobs.owner)
    texts = [""] * len(jobs.examples)
    writer = _Writer(runner.model, jobs.until)
    prefix: Decoder | None = None

    def select(rows: Tensor) -> None:
        if scaling is not None:
            scaling.select(rows)

    if shared:
        n_models = int(owner.max()) + 1
        beginning = torch.tensor(jobs.examples[0].ids[:shared]).repeat(n_models, 1)
        select(torch.arange(n_models))
        prefix = runner.decoder()
        prefix.feed(beginning, torch.ones_like(beginning), runner.block(int(runner.model.cfg.n_layers) - 1), keep=True)

    def work(batch: Batch) -> None:
        models = owner[list(batch.rows)]
        decoder = runner.decoder() if prefix is None else prefix.rows(models)
        written = _decode_greedily(decoder, batch, models, select, writer, jobs.max_new_tokens, drop=runner.shares)
        for row, text in zip(batch.rows, writer.texts(written), strict=True):
            texts[row] = text

    own = without_prefix(jobs.examples, shared) if shared else jobs.examples
    finished = each_batch(own, work, jobs.max_tokens, beside=shared)
    each_done = (1 for n in finished for _ in range(n))
    for _ in track(each_done, "completions", total=len(own), enabled=progress):
        pass
    return texts


def _decode_greedily(
    decoder: Decoder,
    batch: Batch,
    models: Int[Tensor, " row"],
    select: Callable[[Tensor], None],
    writer: _Writer,
    max_new_tokens: int,
    *,
    drop: bool,
) -> list[list[int]]:
    """Token ids of each row's completion. One small transfer from the device a step says which rows go on."""
    written: list[list[int]] = [[] for _ in batch.rows]
    alive = list(range(len(batch)))
    ended: set[int] = set()
    ids, mask = batch.input_ids, batch.attention_mask
    select(models)
    for left in range(max_new_tokens - 1, -1, -1):
        best, chosen = decoder.step(ids, mask).max(-1)
        tokens = torch.where(torch.isfinite(best), chosen, -1).tolist()
        if min(tokens) < 0:
            raise FloatingPointError("the logits are not finite; a smaller alpha or another dtype may help")
        for row, token in zip(alive, tokens, strict=True):
            if row not in ended and writer.goes_on(written[row], token, left):
                continue
            ended.add(row)
        if len(ended) == len(batch) or not left:
            break
        going = [place for place, row in enumerate(alive) if row not in ended]
        if drop and len(going) < len(alive):
            alive = [alive[place] for place in going]
            index = torch.tensor(going)
            decoder, chosen = decoder.rows(index), chosen[index.to(chosen.device)]
            select(models[alive])
        ids, mask = chosen[:, None], torch.ones_like(chosen[:, None])
    return written


class _Writer:
    """Turns tokens into texts, and says when one is finished."""

    def __init__(self, model: HookedModel, until: Until | None) -> None:
        self.tokenizer, self.until = model.tokenizer, until
        self.ends = end_tokens(model)
        self._enough: dict[tuple[int, tuple[int, ...]], bool] = {}

    def texts(self, written: list[list[int]]) -> list[str]:
        decoded: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return decoded

    def goes_on(self, tokens: list[int], new: int, left: int) -> bool:
        """Add a token unless it ends the text; whether another may follow."""
        if new in self.ends:
            return False
        tokens.append(new)
        if self.until is None or not left:
            return bool(left)
        # Completions of many prompts begin alike, so most of these are met many times.
        key = (left, tuple(tokens))
        if key not in self._enough:
            self._enough[key] = self.until(self.texts([tokens])[0].strip(), left)
        return not self._enough[key]
