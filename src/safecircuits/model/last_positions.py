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
def only_at_last(parts: Sequence[nn.Module], n: int, width: int) -> Iterator[None]:
    """For one pass, let each of ``parts`` run at the last ``n`` of ``width`` positions; zero stands at the others.

    What the layer then makes of the other positions means nothing. A part that is not given ``[batch width d]`` alone
    runs in full: another tensor beside it (BLOOM's residual) may belong to the positions too.

    Args:
        parts: modules that treat every position by itself.

    Raises:
        RuntimeError: from the pass, if a part runs twice in it or gives something else than a row a position.
    """
    handles = []
    try:
        for part in parts:
            narrowed = _Narrowed(n, width)
            handles.append(part.register_forward_pre_hook(narrowed.cut, with_kwargs=True))
            handles.append(part.register_forward_hook(narrowed.fill))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Narrowed:
    """The two hooks of one part: the shape that the part's caller expects is kept."""

    def __init__(self, n: int, width: int) -> None:
        self.n, self.missing = n, width - n
        self.width = width
        self.rows = 0
        """Of the batch that was cut; 0 until then."""

    def cut(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.rows:
            raise RuntimeError(
                f"the {type(part).__name__} of the last layer ran twice in one pass, and the second time at positions "
                "that the first had left out; with a hook of your own on the model every position is computed"
            )
        x, *others = args or (None,)
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[1] != self.width:
            return None
        if x.shape[0] * self.missing < _WORTH or any(isinstance(y, Tensor) for y in (*others, *kwargs.values())):
            return None
        self.rows = x.shape[0]
        # TransformerLens's MLP without a gate asks for contiguous memory.
        return (x[:, self.missing :].contiguous(), *others), kwargs

    def fill(self, part: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if not self.rows:
            return None
        if isinstance(output, tuple):  # a mixture of experts says beside it which were taken
            return (self._filled(part, output[0]), *output[1:])
        return self._filled(part, output)

    def _filled(self, part: nn.Module, out: Tensor) -> Tensor:
        if out.shape[:2] == (self.rows, self.n):
            return F.pad(out, (0, 0, self.missing, 0))
        if out.ndim == 2 and len(out) == self.rows * self.n:  # Llama 4's experts put all tokens in one row
            return F.pad(out.view(self.rows, self.n, -1), (0, 0, self.missing, 0)).flatten(0, 1)
        raise RuntimeError(
            f"the {type(part).__name__} of the last layer made {list(out.shape)} of {self.rows} × {self.n} tokens, so "
            "where they belong is unknown; with a hook of your own on the model every position is computed"
        )
