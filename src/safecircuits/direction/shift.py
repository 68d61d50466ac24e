"""Where the directions of a model go when it is changed: fine-tuned, say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.direction.means import MeanDirections
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DirectionShift(Result):
    """Of each layer and position how near the two directions are, and how much longer the second is.

    Attributes:
        cosine: of the directions before and after.
        noise: the cosine that 95 % of resamples of the prompts reach, the lower of the two models': a ``cosine`` above
            it is no shift that the prompts could show.
        length: after over before.

    Examples:
        >>> before = sc.direction.mean_directions(model, malicious, normal)
        >>> shift = sc.direction.direction_shift(before, before)
        >>> round(float(shift.cosine.min()), 4)
        1.0
    """

    cosine: Float[Tensor, "layer position"]
    noise: Float[Tensor, "layer position"]
    length: Float[Tensor, "layer position"]
    positions: tuple[int, ...]
    provenance: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and position; ``moved`` where the cosine is below what resampling does."""
        import pandas as pd

        rows = [
            {
                "layer": layer,
                "position": position,
                "cosine": float(self.cosine[layer, column]),
                "noise": float(self.noise[layer, column]),
                "length": float(self.length[layer, column]),
                "moved": bool(self.cosine[layer, column] < self.noise[layer, column]),
            }
            for layer in range(len(self.cosine))
            for column, position in enumerate(self.positions)
        ]
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """``cosine``, ``noise`` and ``length`` by layer and position."""
        return {name: getattr(self, name).numpy() for name in ("cosine", "noise", "length")}


def direction_shift(before: MeanDirections, after: MeanDirections) -> DirectionShift:
    """Compare the directions of a model before and after a change, made of the same prompts.

    Raises:
        ValueError: for models of different shapes, or directions of other prompts or another template.

    Examples:
        >>> before = sc.direction.mean_directions(model, malicious, normal)
        >>> with sc.scaled(model, (3, 5), alpha=1.2):
        ...     after = sc.direction.mean_directions(model, malicious, normal)
        >>> sc.direction.direction_shift(before, after).cosine.shape == after.cosine.shape
        True
    """
    after.shape.require_same(before.shape, "the direction before the change")
    differs = [name for name in before.provenance if before.provenance[name] != after.provenance.get(name)]
    if differs or before.positions != after.positions:
        raise ValueError(
            f"the two directions differ in {', '.join(differs) or 'positions'}, so a shift would be of the prompts: "
            "make both of the same prompts in the same template"
        )
    a, b = before.difference.double(), after.difference.double()
    lengths = [x.norm(dim=-1) for x in (a, b)]
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    noise = torch.minimum(before.cosine, after.cosine)
    return DirectionShift(cosine, noise, lengths[1] / lengths[0], before.positions, dict(before.provenance))
