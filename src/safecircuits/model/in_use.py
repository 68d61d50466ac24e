"""One thread at a time on a model: a second one is told so, instead of measuring what the first one has changed.

Hooks, training mode, gradients' flags and weights belong to the model, not to a call. What one thread attaches acts on
the passes of all, and what two save and put back in turn stays wrong. Waiting for the other thread could wait forever
where two threads need two models each, so there is an error. Within its thread every use nests freely. Only the
library's own calls are guarded: a model that somebody runs by itself, as a trainer or DataParallel does, is not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class _Use:
    thread: threading.Thread
    depth: int = 0


_USES: dict[int, _Use] = {}
"""By ``id`` of a model in use, or of its first parameter, which bridges over one Hugging Face model share."""

_LOCK = threading.Lock()


@contextmanager
def used_alone(model: Any) -> Iterator[None]:
    """Inside the block no other thread may enter one for the same model, or for one with the same parameters.

    Raises:
        RuntimeError: on entry, while another thread is inside.
    """
    keys = {id(model), *(id(parameter) for parameter in _first(model))}
    claimed = _claim(keys)
    try:
        yield
    finally:
        with _LOCK:
            for key, use in claimed.items():
                use.depth -= 1
                if use.depth == 0 and _USES.get(key) is use:
                    del _USES[key]


def _first(model: Any) -> list[Any]:
    for parameter in model.parameters():
        return [parameter]
    return []


def _claim(keys: set[int]) -> dict[int, _Use]:
    me = threading.current_thread()
    with _LOCK:
        uses = {key: _USES.get(key) for key in keys}
        other = next((u.thread for u in uses.values() if u and u.thread is not me and u.thread.is_alive()), None)
        if other is not None:
            raise RuntimeError(
                f"thread {other.name!r} is using this model, and thread {me.name!r} cannot at the same time: hooks and "
                "modes act on every pass, so that both would be wrong; run one after the other (a lock around each "
                "call, or a pool of one worker), or give each thread a model of its own: load_model from the name or "
                "folder once a thread"
            )
        claimed = {key: use if use and use.thread is me else _Use(me) for key, use in uses.items()}
        for key, use in claimed.items():
            use.depth += 1
            _USES[key] = use
    return claimed
