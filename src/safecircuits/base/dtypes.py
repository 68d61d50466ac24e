"""A dtype as people give it: PyTorch's own, or its name, as the command line and configuration files spell it."""

from __future__ import annotations

import torch


def torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype given as PyTorch's or by its name (``"bfloat16"``, ``"torch.bfloat16"``); None stays None.

    Raises:
        ValueError: for anything that is not one a model computes in.
    """
    if dtype is None:
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1:
        return found
    raise ValueError(f"dtype is one of float32, bfloat16, float16 and float64 (torch's, or its name), not {dtype!r}")
