"""Rows, columns or slices of a tensor by one number each: along one axis, or along several that count together.

What belongs to an expert's neuron in ``[expert, 2 neuron, d_model]`` is a row of two axes taken as one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Along(NamedTuple):
    """The axes that are counted along, the first slowest, and their lengths.

    Slices that are taken out along one axis keep it where it is; along several, the one axis that counts is the first.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def axis(cls, whole: Tensor, axis: int) -> Along:
        """Rows or columns of a tensor."""
        return cls((axis,), (whole.shape[axis],))

    @classmethod
    def whole_slices(
        cls, mask: Bool[Tensor, "..."], *, single: bool = False
    ) -> tuple[Along, Int[Tensor, " true"]] | None:
        """Along what, and where, a mask is True for whole slices: along one axis, or two; None along neither.

        Args:
            single: whether the entries of a matrix may be taken one by one, as those of the biases of experts.
        """
        most = mask.ndim if mask.ndim > 2 or single else 0
        pairs = [(i, j) for i in range(most) for j in range(i + 1, most)]
        for axes in [*((axis,) for axis in range(mask.ndim)), *pairs]:
            along = cls(axes, tuple(mask.shape[axis] for axis in axes))
            rows = mask.movedim(axes, tuple(range(len(axes)))).reshape(along.n_slices, -1)
            if torch.equal(rows.any(1), rows.all(1)):
                return along, rows.any(1).nonzero().flatten()
        return None

    @property
    def n_slices(self) -> int:
        """How many slices there are."""
        return int(torch.Size(self.sizes).numel())

    @property
    def at(self) -> int:
        """The axis of what ``select`` gives that counts the slices."""
        return self.axes[0] if len(self.axes) == 1 else 0

    def select(self, whole: Tensor, index: Int[Tensor, " some"]) -> Tensor:
        """Some of the slices."""
        if len(self.axes) > 1:
            whole = whole.movedim(self.axes, tuple(range(len(self.axes)))).flatten(0, len(self.axes) - 1)
        return whole.index_select(self.at, index)

    def together(self, part: Tensor, rest: Tensor, order: Int[Tensor, " whole"]) -> Tensor:
        """The whole tensor: ``part`` and ``rest`` one after the other, then sorted into their places."""
        slices = torch.cat([part, rest], self.at).index_select(self.at, order)
        if len(self.axes) == 1:
            return slices
        whole: Tensor = slices.unflatten(0, self.sizes)
        return whole.movedim(tuple(range(len(self.axes))), self.axes).contiguous()
