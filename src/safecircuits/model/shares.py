"""Forward passes divided among processes: each runs its share of the prompts, and every one gets what all found.

Each process holds the whole model and has the same prompts, so that what is not divided comes out alike in all of them.
A model whose own parameters are divided (tensor parallel, FSDP) needs all processes in every pass: there nothing is
shared out, and each process runs all prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from safecircuits.base.processes import gather, rank, size, that_travels
from safecircuits.model.packed import named_tensors, parts_of
from safecircuits.prompts.prompt_set import Encoded

T = TypeVar("T")

_SAMPLED = 16
"""Entries of each parameter by which two processes' models are told apart."""


def spread(
    model: Any, examples: Sequence[Encoded], work: Callable[[list[int]], T], what: str = "this"
) -> list[tuple[list[int], T]]:
    """Do ``work`` on this process's rows of ``examples``; what all processes made of theirs, in order of process.

    An error in one of them is raised in all. A process without rows does no work.

    Args:
        work: given rows in ascending order, of examples of about equal length in all; its result is sent to the others.
        what: names the work where processes turn out to do different things.

    Raises:
        ValueError: if the processes have different prompts or models, or do not do the same.
    """
    if size() == 1 or is_divided(model):
        return [(list(range(len(examples))), work(list(range(len(examples)))))] if examples else []
    mine = rows_of(rank(), size(), examples)
    done: T | None = None
    failed: Exception | None = None
    try:
        same = {"its work": what, "its prompts": _of_examples(examples), "its model": weights_digest(model)}
        done = work(mine) if mine else None
    except Exception as error:
        failed = that_travels(error)
    told = gather((None if failed else same, mine, done, failed))
    for *_, failure in told:
        if failure is not None:
            raise failure
    for process, (theirs, *_) in enumerate(told):
        for key, value in told[0][0].items():
            if theirs[key] != value:
                raise ValueError(
                    f"process {process} differs from process 0 in {key} ({theirs[key]} and {value}): every process has "
                    "to run the same lines on the same prompts and model; what only some of them run belongs inside "
                    "`with sc.base.alone():`"
                )
    return [(rows, result) for _, rows, result, _ in told if rows]


def rows_of(process: int, processes: int, examples: Sequence[Encoded]) -> list[int]:
    """Which rows a process takes: dealt out by length, forth and back, so that all have as many tokens about."""
    order = sorted(range(len(examples)), key=lambda row: (-len(examples[row]), row))
    turn = 2 * processes
    return sorted(row for place, row in enumerate(order) if min(place % turn, turn - 1 - place % turn) == process)


def in_order(parts: Sequence[tuple[list[int], Sequence[T]]]) -> list[T]:
    """One list of what was made of each row, in the order of the rows."""
    found = {row: value for rows, values in parts for row, value in zip(rows, values, strict=True)}
    return [found[row] for row in sorted(found)]


def columns_in_order(parts: Sequence[tuple[list[int], Tensor]], dim: int = -1) -> Tensor:
    """One tensor of parts along ``dim``, in the order of the rows."""
    if len(parts) == 1:
        return parts[0][1]  # no copy
    order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()
    return torch.cat([values for _, values in parts], dim=dim).index_select(dim, order)


def is_divided(model: Any) -> bool:
    """Whether a parameter is divided among processes, so that a pass needs all of them."""
    from torch.distributed.tensor import DTensor

    return isinstance(model, nn.Module) and any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _of_examples(examples: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.ids, example.response_start)).encode())
    return f"{len(examples)} of them, digest {digest.hexdigest()[:8]}"


def weights_digest(model: Any) -> str:
    """A digest of a few entries of every parameter and buffer, on whatever device."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors(model):
        for part in parts_of(tensor.detach()):
            flat = part.flatten()
            some = flat[:: max(1, flat.numel() // _SAMPLED)] if not part.is_meta else flat[:0]
            digest.update(f"{name} {tuple(part.shape)} {part.dtype} {some.double().tolist()}".encode())
    return f"digest {digest.hexdigest()[:8]}"
