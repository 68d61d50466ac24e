"""Many scaled models in one pass, with each layer computed once for all of them that are still alike there.

Two scaled models compute the same up to the first layer in which their α differ: below the lowest scaled layer all of
them are the unscaled model, and blocks that begin alike stay together until the shorter one ends. So a pass begins
with one row a prompt, and rows are copied where models part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn


class Branches:
    """Which scaled models share which layers.

    In a pass over n prompts, layer l has a row for each of its groups of models and each prompt, group by group.

    Attributes:
        group: for each layer, the group that each model belongs to.
        members: for each layer, one model of each group.
    """

    def __init__(self, profiles: Sequence[Mapping[int, float]], n_layers: int) -> None:
        paths = [tuple(float(profile.get(layer, 1.0)) for layer in range(n_layers)) for profile in profiles]
        self.group: list[list[int]] = []
        self.members: list[list[int]] = []
        for layer in range(n_layers):
            groups: dict[tuple[float, ...], int] = {}
            self.group.append([groups.setdefault(path[: layer + 1], len(groups)) for path in paths])
            self.members.append([self.group[-1].index(which) for which in range(len(groups))])

    @property
    def first(self) -> int:
        """Groups of the first layer: how often a pass takes each prompt in."""
        return len(self.members[0])

    @property
    def last(self) -> int:
        """Groups of the last layer: models that differ at all."""
        return len(self.members[-1])

    def models(self, n_prompts: int) -> list[Int[Tensor, " row"]]:
        """For each layer, a model that each row stands for."""
        return [torch.tensor(members).repeat_interleave(n_prompts) for members in self.members]

    def rows(self, models: Sequence[int], prompts: Sequence[int], n_prompts: int) -> list[Int[Tensor, " pair"]]:
        """For each layer, the row of each pair of a model and a prompt."""
        which, place = torch.tensor(models), torch.tensor(prompts)
        return [torch.tensor(groups)[which] * n_prompts + place for groups in self.group]

    @contextmanager
    def attached(self, blocks: Sequence[nn.Module], n_prompts: int) -> Iterator[None]:
        """Let a pass over ``first`` copies of ``n_prompts`` prompts part into groups on its way through ``blocks``."""
        handles = []
        try:
            for layer in range(1, len(blocks)):
                if len(self.members[layer]) > self.first:
                    parting = _Parting(
                        self._rows_before(layer, layer - 1, n_prompts), self._rows_before(layer, 0, n_prompts)
                    )
                    handles.append(blocks[layer].register_forward_pre_hook(parting, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _rows_before(self, layer: int, earlier: int, n_prompts: int) -> Int[Tensor, " row"]:
        """The row of an earlier layer that each row of ``layer`` goes on from."""
        members = self.members[layer]
        pairs = [(model, prompt) for model in members for prompt in range(n_prompts)]
        return self.rows([m for m, _ in pairs], [p for _, p in pairs], n_prompts)[earlier]


class _Parting:
    """Before a layer: rows of the layer below become its own, and what all layers are given (masks, positions) too."""

    per_token = True

    def __init__(self, below: Int[Tensor, " row"], given: Int[Tensor, " row"]) -> None:
        self.below, self.given = below, given
        self.n_given = int(given.max()) + 1
        self.stays = torch.equal(below, torch.arange(len(below)))

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, *others = args
        if not self.stays:
            hidden = hidden.index_select(0, self.below.to(hidden.device))
        return (hidden, *map(self._widened, others)), {name: self._widened(value) for name, value in kwargs.items()}

    def _widened(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._widened, value))
        # One value for all rows, or one for each position, stays as it is.
        if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != self.n_given:
            return value
        return value.index_select(0, self.given.to(value.device))
