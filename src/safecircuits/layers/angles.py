"""Directions, and the angles between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from safecircuits.prompts.prompt_set import PromptSet

Formula = Literal["paper", "code"]
"""The mean of the angles (the paper's text), or the angle of the mean cosine (its code)."""


def unit_vectors(values: Float[Tensor, "layer prompt d_model"]) -> Float[Tensor, "layer prompt d_model"]:
    """Residuals as directions, in float64: early layers differ by cosines of 1e-4."""
    values = values.double()
    norms: Tensor = values.norm(dim=-1, keepdim=True)
    if torch.any(norms == 0):
        raise ValueError("a residual stream is exactly zero and has no direction")
    directions: Tensor = values / norms
    return directions


def degrees(cosine: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Angle of a cosine in degrees; rounding beyond ±1 is clipped."""
    angle: Tensor = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    return angle


def require_pairs(*sets: PromptSet) -> None:
    """A ValueError for the first set that has too few prompts to make a pair."""
    for prompts in sets:
        if len(prompts) < 2:
            raise ValueError(f"prompt set {prompts.name!r} has one prompt; pairs need at least two")
