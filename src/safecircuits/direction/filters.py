"""What a candidate direction must keep to before it is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.arguments import read_fields


@dataclass(frozen=True)
class DirectionFilters:
    """What a candidate must keep to (Arditi et al. 2024, appendix C): the published numbers.

    Attributes:
        kl: at most so many nats on harmless prompts without it.
        induce: at least this refusal score on harmless prompts with it added.
        depth: it is of the first so large a part of the layers. The paper counts what enters a block, so that the
            residual stream after layer l is its l + 1.

    Examples:
        >>> sc.direction.DirectionFilters()
        DirectionFilters(kl=0.1, induce=0.0, depth=0.8)
    """

    kl: float = 0.1
    induce: float = 0.0
    depth: float = 0.8

    def __post_init__(self) -> None:
        read_fields(self)

    def shallow(self, n_layers: int) -> Bool[Tensor, " layer"]:
        """Which layers are early enough."""
        return torch.arange(1, n_layers + 1) < int(n_layers * self.depth)
