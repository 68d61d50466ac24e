"""The whole of SSAH (ICLR 2026) on one model."""
