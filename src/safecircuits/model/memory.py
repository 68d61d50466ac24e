"""How much memory a run takes, before it is started: weights, key/value cache, activations, gradients, optimizer.

Weights, cache, gradients and optimizer state are counted exactly. Activations are counted from what a decoder holds at
once in its largest sublayer; tests hold the sum against the tensors of real runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from safecircuits.base.arguments import checked
from safecircuits.base.dtypes import torch_dtype
from safecircuits.model.decoder_sizes import DecoderSizes
from safecircuits.model.modules import meta_model_of
from safecircuits.model.packed import held_tensors, memory_of
from safecircuits.model.quantised import packed_bytes
from safecircuits.prompts.batching import MAX_TOKENS
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode

Task = Literal["residuals", "generate", "scores", "finetune"]
TASKS: tuple[Task, ...] = get_args(Task)

# Share of the free memory that batches are made for.
_USABLE = 0.75


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that are held at once on the model's device, and ``results`` on the CPU.

    Attributes:
        rows, width: prompts in the largest batch, and tokens in each, padding and new tokens included.

    Examples:
        >>> estimate = sc.model.estimate_memory(model, tokens=(16, 64))  # 16 rows of 64 tokens
        >>> estimate.gradients  # nothing is trained
        0
        >>> estimate.total > estimate.weights
        True
    """

    task: Task
    rows: int
    width: int
    weights: int
    kv_cache: int
    activations: int
    gradients: int
    optimizer: int
    results: int

    @property
    def total(self) -> int:
        """All of it but ``results``."""
        return self.weights + self.kv_cache + self.activations + self.gradients + self.optimizer

    def __str__(self) -> str:
        parts = ("weights", "kv_cache", "activations", "gradients", "optimizer")
        shown = ", ".join(f"{name.replace('_', ' ')} {gigabytes(getattr(self, name))}" for name in parts)
        return f"{self.task}, {self.rows} × {self.width} tokens: {gigabytes(self.total)} ({shown})"

    def require(self, device: str | torch.device, *, loaded: bool = True) -> None:
        """Raise a torch.OutOfMemoryError that says what to change if ``device`` has not that much free.

        Args:
            loaded: the weights are there already and only the rest must fit.
        """
        needed = self.total - (self.weights if loaded else 0)
        free = free_memory(device)
        if free is not None and needed > free:
            raise torch.OutOfMemoryError(
                f"{self} does not fit into the {gigabytes(free)} that are free on {device}: {_advice(self)}"
            )


@checked
def estimate_memory(
    model: Any,
    prompts: PromptSet | Sequence[str] | None = None,
    *,
    tokens: tuple[int, int] | None = None,
    task: Task = "residuals",
    max_new_tokens: int = 16,
    max_tokens: int = MAX_TOKENS,
    dtype: torch.dtype | str | None = None,
    trained: float = 1.0,
    template: str = "auto",
) -> MemoryEstimate:
    """How much memory a run needs at once, in bytes, by what holds it.

    Args:
        model: a hooked or plain model, or a Hugging Face configuration (``AutoConfig.from_pretrained(id)``), for which
            no weights are needed.
        prompts: those of the run; needs a model, for its tokenizer.
        tokens: instead of prompts, (rows, width) of one batch, such as ``(batch_size, 512)``.
        task: ``"residuals"`` for one forward pass a prompt (angle gaps), ``"generate"`` for completions and scaling
            sweeps, ``"scores"`` for unit activations, ``"finetune"`` for AdamW with gradients.
        max_new_tokens: of ``"generate"``.
        max_tokens: the analyses' budget of tokens in a batch.
        dtype: of the weights; the model's or the configuration's own unless given.
        trained: share of the parameters that is trained (``1 - mask.share(model)``), by ``"finetune"``.

    Raises:
        ValueError: for an unknown task, or without prompts or tokens.

    Examples:
        >>> estimate = sc.model.estimate_memory(model, tokens=(16, 64), task="generate")
        >>> estimate.kv_cache > 0
        True
        >>> needed = sc.model.estimate_memory("google/gemma-2b-it", tokens=(16, 512))  # doctest: +SKIP
    """
    if task not in TASKS:
        raise ValueError(f"task is one of {', '.join(TASKS)}, not {task!r}")
    if (prompts is None) == (tokens is None):
        raise ValueError("give either prompts or tokens=(rows, width)")
    if not 0 <= trained <= 1:
        raise ValueError(f"trained is a share between 0 and 1, not {trained}")
    config, weights, parameters, itemsize = _weights(model, torch_dtype(dtype))
    if prompts is not None:
        tokenizer = getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("a configuration or plain model has no tokenizer: give tokens=(rows, width)")
        lengths = [len(example) for example in encode(tokenizer, as_prompt_set(prompts), template=template)]
        width = max(lengths)
        rows = min(len(lengths), max(1, max_tokens // width))
        n_prompts = len(lengths)
    else:
        assert tokens is not None
        rows, width = tokens
        n_prompts = rows
    sizes = DecoderSizes.of(config)
    prompt_width = width
    if task == "generate":
        width += max_new_tokens - 1  # the last new token is not fed back
    cache = 2 * sizes.n_layers * rows * width * sizes.d_kv * itemsize if task == "generate" else 0
    if task == "finetune":
        activations = sizes.training_activations(rows, width, itemsize)
        gradients = round(trained * parameters * itemsize)
        optimizer = 2 * gradients
        activations = max(activations, gradients)  # which an update computes with when the others are gone
    else:
        activations = sizes.forward_activations(rows, prompt_width, itemsize, counted=task == "scores")
        gradients = optimizer = 0
    results = 4 * sizes.n_layers * n_prompts * sizes.d_model if task == "residuals" else 0
    return MemoryEstimate(task, rows, width, weights, cache, activations, gradients, optimizer, results)


def batch_tokens(
    model: Any,
    examples: Sequence[Encoded],
    max_tokens: int | None,
    *,
    more: int = 0,
    cached: bool = False,
    gradients: bool = False,
) -> int:
    """Tokens of one batch of ``examples``: ``max_tokens``, or without it what ``fitting_tokens`` says.

    Args:
        more: tokens of each example beside its own: a cached prefix, an answer.
        cached, gradients: as in ``fitting_tokens``.
    """
    if max_tokens is not None:
        return max_tokens
    longest = max(map(len, examples), default=1) + more
    return fitting_tokens(model, longest, cached=cached, gradients=gradients)


def fitting_tokens(model: Any, width: int, *, cached: bool = False, gradients: bool = False) -> int:
    """Tokens of one batch: ``MAX_TOKENS``, or what the memory that is free on the model's device holds if that is less.

    On a CPU that matters most: a process that takes too much is ended there, without an error to halve a batch at.

    Args:
        width: tokens of the longest prompt, those still to be written included.
        cached: whether the keys and values of all layers are kept, as they are to generate.
        gradients: whether a backward pass follows, for which the activations of all layers are kept.
    """
    parameter = next(model.parameters())
    free = free_memory(parameter.device)
    if free is None:
        return MAX_TOKENS
    sizes, itemsize = DecoderSizes.of_hooked(model), parameter.element_size()
    kept = sizes.gradient_activations if gradients else partial(sizes.forward_activations, counted=True)
    row = kept(1, width, itemsize)
    row += 2 * sizes.n_layers * width * sizes.d_kv * itemsize if cached else 0
    # One row always runs; some memory is left to whatever else needs it by then.
    return min(MAX_TOKENS, max(1, int(_USABLE * free) // row) * width)


def require_room(config: Any, dtype: torch.dtype | None, device: torch.device | None, bits: int | None = None) -> None:
    """Raise a torch.OutOfMemoryError if the weights of a configuration are larger than what ``device`` has free.

    Args:
        device: None for all GPUs together and the CPU.
        bits: of an entry of a linear map, where those are quantised.
    """
    _, weights, _, itemsize = _weights(config, dtype)
    if bits is not None:
        weights = packed_bytes(meta_model_of(config), bits, itemsize)
    free = free_memory(device)
    if device is None and free is not None and torch.cuda.is_available():  # what no GPU has room for is offloaded
        free += free_memory("cpu") or 0
    if free is None or weights <= free:
        return
    smaller = "dtype=torch.bfloat16" if itemsize > 2 else "a smaller model"
    where = device or "all devices"
    raise torch.OutOfMemoryError(
        f"the weights take {gigabytes(weights)}, but {where} has {gigabytes(free)} free: use {smaller}"
        + ("" if device is None else ", or device_map='auto' to spread it over several devices")
    )


def free_memory(device: str | torch.device | None) -> int | None:
    """Bytes free on a device (None: on all GPUs together, or the CPU without any); None where that cannot be found."""
    if device is None:
        n = torch.cuda.device_count()
        return sum(torch.cuda.mem_get_info(i)[0] for i in range(n)) if n else free_memory("cpu")
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError):  # no Linux; all of the memory is then the most that can be said
        pages = getattr(os, "sysconf_names", {})
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in pages else None


def gigabytes(n_bytes: int) -> str:
    """``n_bytes`` as a person reads them, in powers of 1000."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} B"


def _weights(model: Any, dtype: torch.dtype | None) -> tuple[Any, int, int, int]:
    """(configuration, bytes of all weights, number of parameters, bytes of one of them)."""
    if isinstance(model, torch.nn.Module):
        from safecircuits.model.bridge import hf_config_of

        config = hf_config_of(model) if hasattr(model, "hook_dict") else model.config  # type: ignore[arg-type]
        own = next(model.parameters()).dtype
        # Split matrices of a bridge may share the memory of a fused one, or may be copies beside it.
        memory = dict(map(memory_of, held_tensors(model)))
        held = sum(memory.values()) // own.itemsize
    else:
        config, held = model, None
        own = getattr(config, "dtype", None) or torch.float32
        own = getattr(torch, own) if isinstance(own, str) else own
    count = sum(p.numel() for p in meta_model_of(config).parameters())
    itemsize = (dtype or own).itemsize
    return config, (held or count) * itemsize, count, itemsize


def _advice(estimate: MemoryEstimate) -> str:
    if estimate.task == "finetune":
        return "use a smaller batch_size with grad_accumulation, freeze more, or dtype=torch.bfloat16"
    if estimate.activations + estimate.kv_cache > estimate.weights:
        return "use a smaller max_tokens, so that fewer prompts go into one batch"
    return "use dtype=torch.bfloat16, or device_map='auto' over several devices"
