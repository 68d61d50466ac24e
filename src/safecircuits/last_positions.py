"""In the last layer of a pass: compute at the last positions alone what no other position needs.

After the last layer's keys and values, only the positions that somebody looks at matter: queries, output projection and
MLP of the others would be thrown away. With one position needed of many that is nearly the whole layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# A part is not worth two hooks for fewer tokens than this.
_WORTH = 128


@contextmanager
def only_at_last(parts: Sequence[nn.Module], n: int) -> Iterator[None]:
    """Let each of ``parts``, which treat every position by itself, run at the last ``n`` positions; zero elsewhere.

    What the layer then makes of the other positions means nothing.
    """
    handles = []
    try:
        for part in parts:
            narrowed = _Narrowed(n)
            handles.append(part.register_forward_pre_hook(narrowed.cut))
            handles.append(part.register_forward_hook(narrowed.fill))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Narrowed:
    """The two hooks of one part: the shape that the part's caller expects is kept."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.missing = 0

    def cut(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self.missing = 0
        x = args[0] if args else None
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[0] * (x.shape[1] - self.n) < _WORTH:
            return None
        self.missing = x.shape[1] - self.n
        return (x[:, self.missing :], *args[1:])

    def fill(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG002
        if not self.missing:
            return None
        if isinstance(output, tuple):  # a mixture of experts says beside it which were taken
            return (self._filled(output[0]), *output[1:])
        return self._filled(output)

    def _filled(self, out: Tensor) -> Tensor:
        return F.pad(out, (0, 0, self.missing, 0))
