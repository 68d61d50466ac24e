"""The processes that ``torchrun`` or ``accelerate launch`` started: who this one is, and what the others have.

Every process runs the same lines on the same inputs. What is slow is divided among them and exchanged here, so that
each then has all of it (``model.shares``); with one process nothing here does anything.
"""

from __future__ import annotations

import atexit
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

T = TypeVar("T")

_divided = True


def size() -> int:
    """How many processes were launched; 1 inside ``alone()``."""
    return _launched() if _divided else 1


def rank() -> int:
    """Which of them this is, from 0; 0 inside ``alone()``."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and prints; inside ``alone()``, too, only one is.

    Examples:
        >>> sc.base.is_main()
        True
    """
    return _launched() == 1 or int(os.environ["RANK"]) == 0


def _launched() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def own_device() -> str:
    """Where a process's model belongs unless told: the GPU of its number on this machine, or the CPU without one."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}" if size() > 1 else "cuda"


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works by itself, whatever the others do.

    For what not every process runs, as under ``if rank == 0:``, where it would wait for the others for ever.

    Examples:
        >>> with sc.base.alone():
        ...     answers = sc.generate(model, malicious)
    """
    global _divided
    before, _divided = _divided, False
    try:
        yield
    finally:
        _divided = before


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order, on each of them.

    Raises:
        ValueError: if PyTorch has another number of processes than were launched.
    """
    if size() == 1:
        return [value]
    _connect()
    import torch.distributed as dist

    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """The value of process 0, on each of them."""
    if size() == 1:
        return value
    _connect()
    import torch.distributed as dist

    told = [value if is_main() else None]
    dist.broadcast_object_list(told)
    return told[0]


def of_main(work: Callable[[], T]) -> T:
    """What ``work`` gives in process 0, which alone does it; what it raises there is raised in all."""
    if size() == 1:
        return work()
    done: T | None = None
    failed: Exception | None = None
    if is_main():
        try:
            done = work()
        except Exception as error:
            failed = that_travels(error)
    done, failure = broadcast((done, failed))
    if failure is not None:
        raise failure
    return cast(T, done)


def that_travels(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _connect() -> None:
    """Join the others, by whatever Accelerate chooses: NCCL between GPUs, gloo between CPUs."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available())
        atexit.register(_disconnect)
    if not dist.is_initialized() or dist.get_world_size() != size():
        found = dist.get_world_size() if dist.is_initialized() else 1
        raise ValueError(
            f"{size()} processes were launched, but Accelerate was set up for {found} before: "
            "set ACCELERATE_USE_CPU=true to run on CPUs, or call this inside `with sc.base.alone():`"
        )


def _disconnect() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
