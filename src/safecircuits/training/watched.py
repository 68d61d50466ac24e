"""Seeing that somebody writes into a tensor that is put together anew for each reader, where the writing would be lost.

PyTorch counts the in-place operations on a tensor, for autograd; a detached tensor shares the count, and keeps it when
its memory is given up. So a count is all that is held of what a reader was given. What goes through ``.data`` is not
counted, so there the reader gets a tensor with a count of its own, and setting it is an error at once.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor


class Watch:
    """The tensors that readers of one partly frozen tensor were given."""

    def __init__(self) -> None:
        self._given: list[tuple[weakref.ref[Tensor], Tensor, int]] = []
        self._written = False

    def hand_out(self, whole: Tensor) -> Tensor:
        """``whole`` for a reader, to be watched from now on."""
        if torch.compiler.is_compiling():
            return whole
        given: Tensor = whole.as_subclass(_Given)
        given._watch = self  # type: ignore[attr-defined]
        self.follow(given)
        return given

    def follow(self, given: Tensor) -> None:
        """Watch one tensor until nobody holds it any more; in inference mode PyTorch counts nothing to watch."""
        if given.is_inference():
            return
        self.was_written()
        count = torch.Tensor.detach(given).as_subclass(torch.Tensor)
        count.data = count.new_empty(0)
        self._given = [entry for entry in self._given if entry[0]() is not None]
        self._given.append((weakref.ref(given), count, count._version))

    def was_written(self) -> bool:
        """Whether an in-place operation has met one of the tensors."""
        self._written = self._written or any(count._version != before for _, count, before in self._given)
        return self._written


class _Given(Tensor):
    """A tensor that computes as any other; what comes of it is a plain tensor."""

    plain_numbers = True
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> Tensor:
        plain: Tensor = torch.Tensor.data.__get__(self).as_subclass(_Given)  # type: ignore[attr-defined]
        watch: Any = getattr(self, "_watch", None)
        if watch is not None:
            plain._watch = watch  # type: ignore[attr-defined]
            watch.follow(plain)
        return plain

    @data.setter
    def data(self, value: Tensor) -> None:
        if getattr(self, "_watch", None) is not None and value.data_ptr() != self.data_ptr():
            raise RuntimeError(WRITTEN)
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]


WRITTEN = (
    "a weight that is frozen in part was written to in place inside frozen(...), where it is put together anew for "
    "each reader, so that the writing is lost: merge adapters and edit weights before or after the block, or change "
    "what trains through handle.named_trainable() or load_state_dict"
)
