"""The whole of Safety Layers (ICLR 2025) on one model."""
