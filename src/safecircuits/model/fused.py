"""Bridges that compute with copies of a fused matrix, and how the copies become the fused matrix again.

Some architectures interleave the query, key and value rows of one matrix head by head (GPT-NeoX, BLOOM, Falcon). No
strided view can separate them, so a bridge copies them apart, computes with the copies, and never looks at the fused
matrix again. The way back is found by splitting a matrix whose rows are their own numbers with the bridge's own code.

Where a strided view does separate them (GPT-2, Phi-3), a bridge computes with views. A copy of the bridge, or one cast
to another dtype or moved to another device, has memory of its own for each: the views are made anew then.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from safecircuits.model.sites import is_bridge


@dataclass(frozen=True)
class Copied:
    """A linear layer whose weight and bias are copies of ``rows`` of a fused layer's."""

    piece: nn.Module
    fused: nn.Module
    rows: Int[Tensor, " row"]

    def tensors(self) -> Iterator[tuple[Tensor, nn.Parameter]]:
        """(copy, fused parameter) for the weight, and for the bias if there is one."""
        for leaf in ("weight", "bias"):
            whole = getattr(self.fused, leaf)
            if whole is not None:
                yield getattr(self.piece, leaf), whole


_COPIES: weakref.WeakKeyDictionary[Any, list[Copied]] = weakref.WeakKeyDictionary()
"""Found once a bridge: while a part of a copy is frozen, its memory no longer tells a copy from a view."""


def copies_of_fused(model: Any) -> list[Copied]:
    """Every copy of a part of a fused layer that a bridge computes with; none for any other model.

    Raises:
        ValueError: if the bridge splits a fused matrix in a way that is not a choice of rows.
    """
    if not is_bridge(model):
        return []
    _make_views_again(model)
    if model not in _COPIES:
        _COPIES[model] = list(_find_copies(model))
    return _COPIES[model]


@torch.no_grad()
def fuse_again(model: Any) -> None:
    """Write what a bridge computes with into the fused parameters of its checkpoint, in place."""
    for copied in copies_of_fused(model):
        for part, whole in copied.tensors():
            whole.index_copy_(0, copied.rows.to(whole.device), part.detach().contiguous())


@torch.no_grad()
def _make_views_again(bridge: Any) -> None:
    """Let pieces that were views of a fused matrix, and have come to lie elsewhere, be views of it, with their values.

    What a piece holds is what the bridge computes with, so it is what the fused matrix gets.
    """
    known = {id(copied.piece) for copied in _COPIES.get(bridge, ())}
    for block in bridge.blocks:
        for part, split, names in (
            (getattr(block, "attn", None), "split_qkv_matrix", ("q", "k", "v")),
            (getattr(block, "mlp", None), "split_gate_up_matrix", ("gate", "in")),
        ):
            if part is None or not callable(getattr(part, split, None)):
                continue
            pieces = [getattr(part, name).original_component for name in names]
            whole = {p.untyped_storage().data_ptr() for p in _of_checkpoint(part, pieces)}
            weights = [piece._parameters.get("weight") for piece in pieces]
            if all(
                id(piece) in known or w is None or _lies_in(w, whole) for piece, w in zip(pieces, weights, strict=True)
            ):
                continue  # as it should be; a part that is held apart in training is no parameter just now
            for piece, fresh in zip(pieces, getattr(part, split)(part.original_component), strict=True):
                for leaf, view in fresh.named_parameters():
                    if _lies_in(view, whole):
                        view.copy_(getattr(piece, leaf))
                        getattr(piece, leaf).data = view.data


def _of_checkpoint(part: Any, pieces: list[nn.Module]) -> Iterator[nn.Parameter]:
    """The parameters of the checkpoint's own module, without those of the pieces that stand for parts of them."""
    apart = {id(p) for piece in pieces for p in piece.parameters()}
    return (p for p in part.original_component.parameters() if id(p) not in apart)


def _lies_in(tensor: Tensor, storages: set[int]) -> bool:
    return tensor.untyped_storage().data_ptr() in storages


def _find_copies(bridge: Any) -> Iterator[Copied]:
    known: dict[torch.Size, list[Int[Tensor, " row"]]] = {}
    for block in bridge.blocks:
        attention: Any = getattr(block, "attn", None)
        if not callable(getattr(attention, "split_qkv_matrix", None)) or "qkv" not in attention.submodules:
            continue
        fused = attention.qkv.original_component
        pieces = [piece.original_component for piece in (attention.q, attention.k, attention.v)]
        if _same_memory(pieces[0].weight, fused.weight):
            continue
        if fused.weight.shape not in known:
            known[fused.weight.shape] = _rows_of_pieces(attention, fused)
        for piece, rows in zip(pieces, known[fused.weight.shape], strict=True):
            yield Copied(piece, fused, rows)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _rows_of_pieces(attention: Any, fused: Any) -> list[Int[Tensor, " row"]]:
    """Which rows of the fused matrix make up the query, the key and the value matrix."""
    n_rows, d_in = fused.weight.shape
    numbers = torch.arange(n_rows, dtype=torch.float32)
    with torch.device("meta"):
        numbered = nn.Linear(d_in, n_rows, bias=fused.bias is not None)
    numbered.weight = nn.Parameter(numbers[:, None].expand(n_rows, d_in), requires_grad=False)
    if fused.bias is not None:
        numbered.bias = nn.Parameter(numbers.clone(), requires_grad=False)
    pieces = attention.split_qkv_matrix(SimpleNamespace(**{attention.submodules["qkv"].name: numbered}))
    rows = [piece.weight.detach()[:, 0].round().long() for piece in pieces]
    alike = all(
        torch.equal(piece.weight, chosen[:, None].float().expand_as(piece.weight))
        and (fused.bias is None or torch.equal(piece.bias, chosen.float()))
        for piece, chosen in zip(pieces, rows, strict=True)
    )
    if not alike or not torch.equal(torch.cat(rows).sort().values, torch.arange(n_rows)):
        raise ValueError(f"the fused attention matrix of a {type(attention).__name__} cannot be put together again")
    return rows
