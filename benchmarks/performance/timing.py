"""Side by side in one process: what else the machine does then falls on all alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Row = dict[str, Any]


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def by_processor_time() -> bool:
    """Whether the processor's own time is what a single-threaded way takes."""
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def interleaved(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each way: the least of ``rounds``, one way after the other in each, after one that is not counted.

    On a single thread it is the processor's time, which other programs on the machine do not count in.
    """
    clock = time.process_time if by_processor_time() else time.perf_counter
    best = dict.fromkeys(ways, math.inf)
    for turn in range(rounds + 1):
        for name, way in ways.items():
            gc.collect()
            _settle()
            start = clock()
            way()
            _settle()
            if turn or rounds == 0:
                best[name] = min(best[name], clock() - start)
    return best


def faster(operation: str, peer: str, ours: float, theirs: float, aim: float | None, equal: bool | None) -> Row:
    """A row for "at least ``aim`` times faster than the peer"."""
    ratio = theirs / ours
    return {
        "operation": operation,
        "peer": peer,
        "ratio": round(ratio, 2),
        "aim": None if aim is None else f"at least {aim:g} x faster",
        "met": None if aim is None else ratio >= aim,
        "equal": equal,
        "seconds": round(ours, 4),
        "peer_seconds": round(theirs, 4),
    }


def within(operation: str, peer: str, ours: float, theirs: float, aim: float | None, equal: bool | None) -> Row:
    """A row for "at most ``aim`` times what the peer takes", of time or of memory."""
    ratio = ours / theirs
    return {
        "operation": operation,
        "peer": peer,
        "ratio": round(ratio, 3),
        "aim": None if aim is None else f"at most {aim:g} x its cost",
        "met": None if aim is None else ratio <= aim,
        "equal": equal,
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
    }


def growth(operation: str, against: str, sizes: list[int], seconds: list[float], aim: float | None) -> Row:
    """A row for the exponent p of "cost grows with size to the power p", fitted over all sizes."""
    xs, ys = [math.log(x) for x in sizes], [math.log(y) for y in seconds]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)
    return {
        "operation": operation,
        "peer": f"growth with {against}, {sizes[0]:,} to {sizes[-1]:,}",
        "ratio": round(slope, 2),
        "aim": None if aim is None else f"exponent at most {aim:g}",
        "met": None if aim is None else slope <= aim,
        "equal": None,
        "why": f"between the two largest sizes alone the exponent is {(ys[-1] - ys[-2]) / (xs[-1] - xs[-2]):.2f}.",
        "sizes": sizes,
        "seconds": [round(s, 4) for s in seconds],
    }


@contextmanager
def counted_tokens(layers: Iterable[torch.nn.Module], work: dict[str, int], which: str) -> Iterator[None]:
    """Add to ``work[which]`` the tokens that enter each layer, padding too."""

    def count(_: Any, args: Any, output: Any) -> None:  # noqa: ARG001
        out = output[0] if isinstance(output, tuple) else output
        work[which] += out.shape[0] * out.shape[1]

    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
