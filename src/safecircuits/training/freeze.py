"""Freezing by construction: while training runs, what is frozen is not a parameter.

A tensor that is frozen whole requires no gradient. Of a tensor that is frozen in part, only the trainable slice is a
parameter; see ``slices``. So gradients, optimizer state, momentum and weight decay exist for the trainable slice alone,
and there is nothing that a training step could move by accident.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from safecircuits.masks.freeze_mask import FreezeMask, require_mask
from safecircuits.model.fused import fuse_again
from safecircuits.model.parameters import checkpoint_parameters, live_parameters
from safecircuits.training.along import Along
from safecircuits.training.slices import Originals, Slice, hold_apart, put_back
from safecircuits.training.watched import WRITTEN

Place = tuple[Along, Int[Tensor, " frozen"]]
"""Frozen rows, columns or slices of a tensor: along what they are counted, and which they are."""


@dataclass(frozen=True)
class Places:
    """Where what a mask freezes lies in a model, for as long as that has the same parameters.

    A boolean mask takes a byte an entry; the places are its rows and columns, so that a mask is written out once.

    Attributes:
        computed_with: by name of a parameter that the model computes with; None for one that is frozen whole.
        stored: the same by the names of the checkpoint.
        n_frozen: number of frozen entries of the checkpoint.
    """

    computed_with: Mapping[str, Place | None]
    stored: Mapping[str, Place | None]
    n_frozen: int

    @classmethod
    def of(cls, model: Any, mask: FreezeMask) -> Places:
        """Let a mask meet a model; a ``ValueError`` for another model's, or one that freezes nothing."""
        if not require_mask(mask, "frozen units"):
            raise ValueError("the freeze mask freezes nothing; pass None to train without one")
        live = live_parameters(model)
        computed_with, stored = mask.masks_on(model)
        return cls(
            _places({name: where for name, where in computed_with.items() if name in live}),
            _places(stored),
            sum(int(where.sum()) for where in stored.values()),
        )

    def digest(self, model: Any) -> str:
        """SHA-256 (hex) of the frozen entries."""
        fuse_again(model)
        return _digest(checkpoint_parameters(model), self.stored)


@contextmanager
def frozen(model: Any, mask: FreezeMask | Places | None) -> Iterator[Frozen]:
    """Freeze what ``mask`` names inside a ``with`` block; optimize ``handle.trainable_parameters()`` there.

    Takes a TransformerBridge, a HookedTransformer or a plain Hugging Face model, and a mask or its ``Places`` there. On
    leaving the block, by an exception too, the trained slices are written back into the original ``Parameter`` objects,
    every ``requires_grad`` is as it was, and the frozen entries are compared by SHA-256 with what they were. Parameters
    that require no gradient on entry are not trained. With ``mask=None`` nothing is frozen, and the block only keeps
    stand-in parameters (such as the unembedding bias that a bridge adds) from being trained.

    Inside, the forward pass is what it was, and so are the names and shapes of state dicts: ``model.state_dict()`` and
    ``save_pretrained`` hold the values of the moment, and ``load_state_dict`` takes them back. Make the optimizer
    inside. A Hugging Face model whose parameters a bridge shares is empty while the bridge is in the block.

    Raises:
        ValueError: for another model's mask, one that freezes nothing or leaves nothing to train, and a model that is
            already inside such a block.
        RuntimeError: on exit, if a frozen entry is not bit-identical to what it was.

    Examples:
        >>> import torch
        >>> tuned = sc.load_model("aligned")
        >>> mask = sc.FreezeMask.layers((3, 5), sc.ModelShape.of(tuned))
        >>> with sc.frozen(tuned, mask) as handle:
        ...     optimizer = torch.optim.AdamW(handle.trainable_parameters(), lr=1e-3)
        >>> len(sc.training.frozen_digest(tuned, mask))
        64
    """
    handle = Frozen(model, mask)
    try:
        yield handle
    finally:
        handle.close()


def frozen_digest(model: Any, mask: FreezeMask) -> str:
    """SHA-256 (hex) of the entries of ``model`` that ``mask`` freezes: equal before and after means bit-identical.

    It is the same for a plain Hugging Face model and for a bridge with its weights.

    Examples:
        >>> mask = sc.FreezeMask.layers((3, 5))
        >>> same = sc.load_model("aligned")
        >>> sc.training.frozen_digest(model, mask) == sc.training.frozen_digest(same, mask)
        True
    """
    return Places.of(model, mask).digest(model)


class Frozen:
    """A model in training, with its frozen part set apart. Made by ``frozen``.

    Attributes:
        frozen_digest: SHA-256 (hex) of the frozen entries, taken on entry.
        n_frozen: number of frozen entries.
        n_trainable: number of entries that train.

    Examples:
        >>> with sc.frozen(sc.load_model("aligned"), sc.FreezeMask.layers((0, 7))) as handle:
        ...     trained = sum(parameter.numel() for parameter in handle.trainable_parameters())
        >>> 0 < trained < sum(parameter.numel() for parameter in model.parameters())
        True
    """

    def __init__(self, model: Any, mask: FreezeMask | Places | None) -> None:
        model = unwrapped(model)
        root = getattr(model, "original_model", model)
        if any(isinstance(module, Slice) for module in root.modules()):
            raise ValueError("the model is already inside frozen(...): combine the masks with | and freeze once")
        places = mask if isinstance(mask, Places | None) else Places.of(model, mask)
        places = places or Places({}, {}, 0)
        fuse_again(model)
        self._model = model
        self._live = live_parameters(model)
        self._stored = checkpoint_parameters(model)
        cuts, self._frozen_at, self.n_frozen = places.computed_with, places.stored, places.n_frozen
        self._trained: dict[str, nn.Parameter] = {
            name: p for name, p in self._live.items() if p.requires_grad and cuts.get(name, ()) is not None
        }
        if not self._trained:
            raise ValueError("nothing is left to train: the mask and requires_grad=False cover every parameter")
        self.frozen_digest = _digest(self._stored, self._frozen_at)
        self._requires_grad = [(p, p.requires_grad) for p in root.parameters()]
        self._slices: dict[str, Slice] = {}
        self._changed: list[tuple[nn.Module, type[nn.Module], Originals]] = []
        for parameter in root.parameters():
            parameter.requires_grad_(False)
        for parameter in self._trained.values():
            parameter.requires_grad_(True)
        try:
            self._cut(root, {name: place for name, place in cuts.items() if place is not None})
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

    def check_optimizer(self, optimizer: Any) -> None:
        """Raise a ValueError if ``optimizer`` was made before the freeze: it would hold what trains no longer."""
        replaced = {id(self._live[name]) for name in self._slices}
        if any(id(p) in replaced for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "the optimizer was made before the model was frozen, so it would miss the trainable slices: make it "
                "inside frozen(...), from handle.trainable_parameters()"
            )

    def is_of(self, model: Any) -> bool:
        """Whether this is the freeze of ``model``, wrapped or not."""
        return unwrapped(model) is self._model

    def holds_all_of(self, optimizer: Any) -> bool:
        """Whether an optimizer moves nothing but what trains here."""
        mine = {id(p) for p in self.trainable_parameters()}
        return optimizer is None or all(id(p) in mine for group in optimizer.param_groups for p in group["params"])

    def take_over(self, optimizer: Any) -> None:
        """Give an optimizer that was made before the freeze, and has not stepped yet, what trains instead.

        Raises:
            ValueError: for an optimizer that has a state, or is of another model; and in several processes, which
                average the gradients of the parameters that they were given.
        """
        if self.holds_all_of(optimizer):
            return
        pieces = {id(self._live[name]): piece.part for name, piece in self._slices.items()}
        trains = {id(p): p for p in self._trained.values()} | pieces
        own = {id(p) for p, _ in self._requires_grad}
        given = [p for group in optimizer.param_groups for p in group["params"]]
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if several and torch.distributed.get_world_size() > 1:
            raise ValueError(
                "in several processes the model must be frozen before it is wrapped: give the trainer model= and not "
                "model_init=, with the FreezeCallback in callbacks="
            )
        if any(id(p) not in own for p in given) or any(optimizer.state.get(p) for p in given):
            raise ValueError(
                "a FreezeCallback needs an optimizer of the model that trains which has not stepped yet: make a new "
                "trainer to train again, and resume with model= and not model_init="
            )
        for group in optimizer.param_groups:
            group["params"][:] = [trains[id(p)] for p in group["params"] if id(p) in trains]

    def verify(self) -> None:
        """Raise a RuntimeError unless the frozen entries are still those of the entry, bit for bit."""
        self._require_unwritten()
        self._write_back()
        fuse_again(self._model)
        whole = {id(self._live[name]): piece for name, piece in self._slices.items()}
        values = {name: whole[id(p)].value() if id(p) in whole else p for name, p in self._stored.items()}
        if _digest(values, self._frozen_at) != self.frozen_digest:
            raise RuntimeError(
                "frozen entries have changed: something other than the optimizer wrote to the model inside frozen(...)"
            )

    def close(self) -> None:
        """Write the trained slices back, make the model what it was, and verify what was frozen."""
        written = self._is_written()
        for module, kind, originals in reversed(self._changed):
            put_back(module, kind, originals)
        self._write_back()
        for name, piece in self._slices.items():
            original = self._live[name]
            if original.numel() == 0:
                original.data = piece.value()
            # An optimizer may hold the slice for long; it need not hold its memory.
            piece.part.grad = None
            piece.part.data = piece.rest = original.new_empty(0)
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
        self._changed, self._slices = [], {}
        if written:
            raise RuntimeError(WRITTEN)
        self.verify()

    def _cut(self, root: nn.Module, cuts: Mapping[str, Place]) -> None:
        """Leave only the trainable slice of each partly frozen tensor a parameter."""
        alone = _alone_in_memory(root)
        by_id: dict[int, Slice] = {}
        for name, (along, frozen_at) in cuts.items():
            if name in self._trained:
                original = self._live[name]
                free = torch.ones(along.n_slices, dtype=torch.bool).index_fill(0, frozen_at, False)
                piece = Slice(original, along, free.nonzero().flatten())
                self._slices[name] = by_id[id(original)] = piece
                if id(original) in alone:
                    original.data = original.new_empty(0)  # or the model would be in memory twice
        for module in list(root.modules()):
            before = dict(module._parameters)
            leaves = {leaf: by_id[id(p)] for leaf, p in before.items() if id(p) in by_id}
            if leaves:
                self._changed.append((module, type(module), before))
                hold_apart(module, leaves)

    @torch.no_grad()
    def _write_back(self) -> None:
        """Bring tensors that were left in memory, since others share it, up to date."""
        for name, piece in self._slices.items():
            if self._live[name].numel():
                self._live[name].copy_(piece.value())

    def _is_written(self) -> bool:
        """Whether somebody has written into a partly frozen tensor past its slice, which would be lost."""
        return any(piece.watch.was_written() for piece in self._slices.values())

    def _require_unwritten(self) -> None:
        if self._is_written():
            raise RuntimeError(WRITTEN)


def unwrapped(model: Any) -> Any:
    """A model without the wrappers of torch.compile and of data parallelism, which show its parameters through."""
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while hasattr(model, "_orig_mod") or isinstance(model, kinds):
        model = getattr(model, "_orig_mod", None) or model.module
    return model


def in_parts(model: Any) -> bool:
    """Whether a process holds parts of the weights alone: FSDP of either kind, or DeepSpeed's ZeRO-3."""
    marks = ("to_local", "ds_id", "_is_flat_param")
    return any(hasattr(p, mark) for p in unwrapped(model).parameters() for mark in marks)


def _alone_in_memory(root: nn.Module) -> set[int]:
    """Ids of the parameters whose memory no other parameter shares, so that it can be given up for a while."""
    owners: dict[int, list[nn.Parameter]] = {}
    for p in root.parameters():
        owners.setdefault(p.untyped_storage().data_ptr(), []).append(p)
    return {
        id(p)
        for p, *others in owners.values()
        if not others and p.is_contiguous() and p.untyped_storage().nbytes() == p.numel() * p.element_size()
    }


def _places(masks: Mapping[str, Bool[Tensor, "..."]]) -> dict[str, Place | None]:
    """Where each mask is True: along what and which, or None for a mask that is True everywhere."""
    return {name: None if mask.all() else _place(name, mask) for name, mask in masks.items()}


def _place(name: str, mask: Bool[Tensor, "..."]) -> Place:
    if (place := Along.whole_slices(mask, single=name.endswith("bias"))) is not None:
        return place
    raise ValueError(f"the frozen entries of {name} are not whole rows, columns or slices, so they cannot be set apart")


def _digest(parameters: Mapping[str, Tensor], places: Mapping[str, Place | None]) -> str:
    sha = hashlib.sha256()
    for name in sorted(places):
        values, place = parameters[name].detach(), places[name]
        if place is not None:
            along, index = place
            values = along.select(values, index.to(values.device)).flatten()
        sha.update(f"{name} {tuple(values.shape)} {values.dtype}\n".encode())
        sha.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
