"""Another model of the same shape, which a method compares with: mostly the one before alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safecircuits.base.progress import without_bars
from safecircuits.hooks.linear_maps import Matrix, components_of
from safecircuits.model.fingerprint import fingerprint_checkpoint, weights_fingerprint
from safecircuits.model.fused import fuse_again
from safecircuits.model.load import load_model
from safecircuits.model.parameters import as_hooked, checkpoint_parameters, is_plain, live_parameters
from safecircuits.model.sites import ModelShape, is_bridge

Matrices = dict[str, Float[Tensor, "out in"]]
"""Linear maps of the layers by ``layer.component``, as ``nn.Linear`` holds them."""


class EarlierModel:
    """A model by its name, folder or hub id, loaded when it is needed, or a model in memory.

    Attributes:
        fingerprint: of its files, its name where they are elsewhere, or of the weights in memory.

    Raises:
        ValueError: for anything else.

    Examples:
        >>> earlier = EarlierModel("unaligned")
        >>> len(earlier.fingerprint), earlier == EarlierModel("unaligned")
        (16, True)
    """

    def __init__(self, source: Any) -> None:
        if isinstance(source, str | Path):
            self.fingerprint = fingerprint_checkpoint(source) or str(source)
        elif isinstance(source, nn.Module):
            self.fingerprint = weights_fingerprint(source)
        else:
            raise ValueError(f"a model is given by its name, its folder or itself, not as {source!r}")
        self._source = source

    def __repr__(self) -> str:
        named = isinstance(self._source, str | Path)
        return f"EarlierModel({str(self._source) if named else type(self._source).__name__!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EarlierModel) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def loaded(self, like: Any) -> Any:
        """The model with hook points, of the backend and in the precision of ``like``, on its device.

        Raises:
            ValueError: if it is of another shape, or has been changed since it was given.
        """
        first = next(iter(like.parameters()))
        if isinstance(self._source, str | Path):
            backend: Any = "bridge" if is_plain(like) or is_bridge(like) else "hooked"
            with without_bars():
                found = load_model(self._source, backend=backend, dtype=first.dtype, device=first.device)
        else:
            found = as_hooked(self._source)
            if weights_fingerprint(self._source) != self.fingerprint:
                raise ValueError("the earlier model has been changed since it was given: give a copy, or its name")
        ModelShape.of(as_hooked(like)).require_same(ModelShape.of(found), f"the trained model, of which {self!r} is no")
        if is_bridge(found) != (is_plain(like) or is_bridge(like)):
            raise ValueError(f"{self!r} is of another backend than the model that trains: load both with one")
        return found


def earlier_model(given: Any, name: str, why: str) -> EarlierModel:
    """A setting that is a model; a ValueError that says what it is needed for if there is none."""
    if given is None:
        raise ValueError(f"{name} is missing: {why}; give its name, its folder, or the model")
    return given if isinstance(given, EarlierModel) else EarlierModel(given)


def values_of(model: Any, like: Any) -> dict[str, Tensor]:
    """Copies of the weights of a model with hook points, by the names that ``like`` computes with."""
    fuse_again(model)
    named = checkpoint_parameters(model) if is_plain(like) else live_parameters(model)
    return {name: parameter.detach().clone() for name, parameter in named.items()}


def matrices_of(model: Any) -> dict[str, Matrix]:
    """Every linear map of the layers, in place."""
    hooked = as_hooked(model)
    keys = [(layer, part) for layer in range(int(hooked.cfg.n_layers)) for part in components_of(hooked)]
    return {f"{layer}.{part}": Matrix.of(hooked, layer, part) for layer, part in keys}


@torch.no_grad()
def read(matrices: dict[str, Matrix]) -> Matrices:
    """Copies of them, which stay what they are now."""
    return {key: matrix.read().detach().clone() for key, matrix in matrices.items()}


def same_view(matrix: Matrix, of: Tensor) -> Matrix:
    """The matrix in another tensor of its parameter's shape, such as the gradient; writing reaches that tensor."""
    assert of.shape == matrix.owner.shape
    if of.stride() != matrix.owner.stride():
        raise ValueError("a gradient lies otherwise in memory than its parameter")
    offset = of.storage_offset() + matrix.view.storage_offset() - matrix.owner.storage_offset()
    return Matrix(of.as_strided(matrix.view.shape, matrix.view.stride(), offset), matrix.component, of)
