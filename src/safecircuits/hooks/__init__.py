"""What is done to a running model: collect from it, scale it, ablate it."""

from safecircuits.hooks.ablate import ablated
from safecircuits.hooks.collect import Residuals, collect_residuals
from safecircuits.hooks.scale import scaled, substituted
from safecircuits.model.attach import attached

__all__ = ["Residuals", "ablated", "attached", "collect_residuals", "scaled", "substituted"]
