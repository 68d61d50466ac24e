"""Freezing by construction: while training runs, what is frozen is not a parameter.

A tensor that is frozen whole requires no gradient. Of a tensor that is frozen in part, only the trainable slice is a
parameter; the module puts the whole together from it whenever it is read. So gradients, optimizer state, momentum and
weight decay exist for the trainable slice alone, and there is nothing that a training step could move by accident.
Frozen entries stay in the memory they were in before, which nothing here ever writes to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from safecircuits.masks import FreezeMask
from safecircuits.parameters import Masks, checkpoint_parameters, is_plain, live_parameters
from safecircuits.sites import is_bridge


@contextmanager
def frozen(model: Any, mask: FreezeMask | None) -> Iterator[Frozen]:
    """Freeze what ``mask`` names for the length of the block; optimize ``handle.trainable_parameters()`` inside it.

    Takes a TransformerBridge, a HookedTransformer or a plain Hugging Face model. On leaving the block, by an exception
    too, the trained slices are written back into the original ``Parameter`` objects, every ``requires_grad`` is as it
    was, and the frozen entries are compared by SHA-256 with what they were. Parameters that require no gradient on
    entry are not trained. With ``mask=None`` nothing is frozen, and the block only keeps stand-in parameters (such as
    the unembedding bias that a bridge adds) from being trained.

    Raises:
        ValueError: for another model's mask, one that freezes nothing or leaves nothing to train, a model that is
            already inside such a block, and a bridge that computes with copies (GPT-NeoX, BLOOM, Falcon).
        RuntimeError: on exit, if a frozen entry is not bit-identical to what it was.
    """
    handle = Frozen(model, mask)
    try:
        yield handle
    finally:
        handle.close()


def frozen_digest(model: Any, mask: FreezeMask) -> str:
    """SHA-256 (hex) of the entries of ``model`` that ``mask`` freezes: equal before and after means bit-identical.

    It is the same for a plain Hugging Face model and for a bridge with its weights.
    """
    return _digest(checkpoint_parameters(model), mask.parameter_masks(model))


class Frozen:
    """A model in training, with its frozen part set apart. Made by ``frozen``.

    Attributes:
        frozen_digest: SHA-256 (hex) of the frozen entries, taken on entry.
        n_frozen: number of frozen entries.
        n_trainable: number of entries that train.
    """

    def __init__(self, model: Any, mask: FreezeMask | None) -> None:
        root = getattr(model, "original_model", model)
        if any(isinstance(module, _Slice) for module in root.modules()):
            raise ValueError("the model is already inside frozen(...): combine the masks with | and freeze once")
        if mask is not None and not mask:
            raise ValueError("the freeze mask freezes nothing; pass None to train without one")
        self._live = live_parameters(model)
        self._masks = {} if mask is None else _live_masks(model, mask, self._live)
        self._stored = checkpoint_parameters(model)
        self._stored_masks = {} if mask is None else mask.parameter_masks(model)
        self._trained: dict[str, nn.Parameter] = {
            name: p for name, p in self._live.items() if p.requires_grad and not _all(self._masks.get(name))
        }
        if not self._trained:
            raise ValueError("nothing is left to train: the mask and requires_grad=False cover every parameter")
        self.frozen_digest = _digest(self._stored, self._stored_masks)
        self.n_frozen = sum(int(m.sum()) for m in self._stored_masks.values())
        self._requires_grad = [(p, p.requires_grad) for p in root.parameters()]
        self._slices: dict[str, _Slice] = {}
        self._changed: list[tuple[nn.Module, type[nn.Module], dict[str, nn.Parameter | None]]] = []
        for parameter in root.parameters():
            parameter.requires_grad_(False)
        for parameter in self._trained.values():
            parameter.requires_grad_(True)
        try:
            self._cut(root)
        except BaseException:
            self.close()
            raise
        self.n_trainable = sum(p.numel() for p in self.trainable_parameters())

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """What trains, by the name of the parameter it is or is a slice of."""
        return {name: self._slices[name].part if name in self._slices else p for name, p in self._trained.items()}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimizer should be given: whole parameters, and the trainable slices of partly frozen ones."""
        return list(self.named_trainable().values())

    def verify(self) -> None:
        """Raise a RuntimeError unless the frozen entries are still those of the entry, bit for bit."""
        if _digest(self._stored, self._stored_masks) != self.frozen_digest:
            raise RuntimeError(
                "frozen entries have changed: something other than the optimizer wrote to the model inside frozen(...)"
            )

    def close(self) -> None:
        """Write the trained slices back, make the model what it was, and verify what was frozen."""
        for module, kind, parameters in reversed(self._changed):
            module.__class__ = kind
            for name in [name for name, child in module._modules.items() if isinstance(child, _Slice)]:
                del module._modules[name]
            module._parameters.clear()
            module._parameters.update(parameters)
        with torch.no_grad():
            for name, piece in self._slices.items():
                self._live[name].index_copy_(piece.axis, piece.index, piece.part)
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
        self._changed, self._slices = [], {}
        self.verify()

    def _cut(self, root: nn.Module) -> None:
        """Leave only the trainable slice of each partly frozen tensor a parameter."""
        cut = {name: mask for name, mask in self._masks.items() if name in self._trained}
        self._slices = {name: _Slice(self._live[name], *_axis_of(name, mask)) for name, mask in cut.items()}
        by_id = {id(self._live[name]): piece for name, piece in self._slices.items()}
        for module in list(root.modules()):
            before = dict(module._parameters)
            leaves = {leaf: by_id[id(p)] for leaf, p in before.items() if id(p) in by_id}
            if leaves:
                self._changed.append((module, type(module), before))
                _put_together_on_read(module, leaves)


class _Slice(nn.Module):
    """The trainable slice of a partly frozen tensor. ``whole`` shares the memory of the original parameter."""

    def __init__(self, original: Float[Tensor, "..."], axis: int, index: Int[Tensor, " trainable"]) -> None:
        super().__init__()
        self.axis = axis
        self.part = nn.Parameter(original.detach().index_select(axis, index.to(original.device)))
        self.register_buffer("index", index.to(original.device), persistent=False)
        self.register_buffer("whole", original.detach(), persistent=False)

    index: Tensor
    whole: Tensor

    def forward(self) -> Float[Tensor, "..."]:
        # Not in place: the result of an earlier read may still be needed for its backward pass.
        return self.whole.index_copy(self.axis, self.index, self.part)


def _put_together_on_read(module: nn.Module, leaves: Mapping[str, _Slice]) -> None:
    """Replace parameters of ``module`` by properties of the same name, as ``torch.nn.utils.parametrize`` does.

    ``parametrize`` itself would resize the original Parameter, which the user's Hugging Face model shares.
    """
    body: dict[str, Any] = {}
    for leaf, piece in leaves.items():
        child = f"{leaf}_slice"
        del module._parameters[leaf]
        module.add_module(child, piece)
        body[leaf] = property(_reader(child))
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), body)


def _reader(child: str) -> Callable[[nn.Module], Any]:
    return lambda module: module.get_submodule(child)()


def _live_masks(model: Any, mask: FreezeMask, live: Mapping[str, nn.Parameter]) -> Masks:
    """The mask over the parameters that the model computes with, by their own names."""
    masks = mask.parameter_masks(model) if is_plain(model) or not is_bridge(model) else mask.hooked_masks(model)
    return {name: frozen for name, frozen in masks.items() if name in live}


def _all(mask: Tensor | None) -> bool:
    return mask is not None and bool(mask.all())


def _axis_of(name: str, mask: Bool[Tensor, "..."]) -> tuple[int, Int[Tensor, " trainable"]]:
    """The axis along which a mask is cut, and the indices on it that stay trainable."""
    for axis in range(mask.ndim):
        along = mask.movedim(axis, 0).reshape(mask.shape[axis], -1)
        if torch.equal(along.any(1), along.all(1)):
            return axis, (~along.any(1)).nonzero().flatten()
    raise ValueError(f"the frozen entries of {name} are not whole rows, columns or slices, so they cannot be set apart")


def _digest(parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(masks):
        values = parameters[name].detach()
        if not masks[name].all():
            values = values[masks[name].to(values.device)]
        sha.update(f"{name} {tuple(values.shape)} {values.dtype}\n".encode())
        sha.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
