"""FreezeMask, the one object that leaves an analysis and enters training, and its file."""

from safecircuits.masks.freeze_mask import FreezeMask

__all__ = ["FreezeMask"]
