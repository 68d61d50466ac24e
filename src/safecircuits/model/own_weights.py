"""Reading a matrix as it runs: an adapter or another wrapper may add to it unseen, and a library may have packed it."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from safecircuits.model.packed import applied_matrix, is_packed

MERGE = (
    "merge an adapter first: peft_model.merge_and_unload(), or for one that add_adapter or load_adapter has put into "
    "the model PeftModel.from_pretrained(model, adapter_folder).merge_and_unload()"
)

_COMPONENT = {"W_Q": "q", "W_K": "k", "W_V": "v", "W_O": "o", "W_in": "in", "W_gate": "gate", "W_out": "out"}


def map_behind(part: Any, accessor: str) -> Any:
    """The linear map behind a weight's accessor on a bridge's sublayer; None on a HookedTransformer's."""
    return getattr(getattr(part, _COMPONENT.get(accessor, ""), None), "original_component", None)


def packed_map(part: Any, accessor: str) -> Any:
    """The same if its weight is packed; None where the weight is plain."""
    linear = map_behind(part, accessor)
    return linear if is_packed(linear) else None


def has_weight(part: Any, accessor: str) -> bool:
    """Whether a sublayer has such a weight, as a matrix or packed."""
    linear = map_behind(part, accessor)
    if is_packed(linear) or getattr(getattr(linear, "weight", None), "is_meta", False):
        return True
    try:
        return getattr(part, accessor, None) is not None
    except (NotImplementedError, RuntimeError, ValueError):  # of another form than the accessor expects
        return False


def read_weight(part: Any, accessor: str, layer: int, like: Tensor, d_head: int) -> Tensor:
    """The weight that a sublayer computes with: its own memory, or of a packed one the matrix that it applies.

    Args:
        like: a tensor with the model's precision, on its device.

    Returns:
        ``[in out]``, ``[head in d_head]`` (W_Q, W_K, W_V) or ``[head d_head out]`` (W_O).

    Raises:
        ValueError: if the map computes with more than its weight (an unmerged adapter).
    """
    linear = packed_map(part, accessor)
    if linear is None:
        weight: Tensor = getattr(part, accessor).detach()
        require_own_weight(part, accessor, weight, layer)
        return weight
    matrix = applied_matrix(linear, like.dtype, like.device)
    if accessor in ("W_Q", "W_K", "W_V"):
        return rearrange(matrix, "d_in (head d_head) -> head d_in d_head", d_head=d_head)
    return rearrange(matrix, "(head d_head) out -> head d_head out", d_head=d_head) if accessor == "W_O" else matrix


@torch.no_grad()
def require_own_weight(part: Any, accessor: str, weight: Tensor, layer: int) -> None:
    """A ValueError unless a bridge's linear map computes x @ ``weight``, as it does not under an unmerged adapter.

    Args:
        part: the sublayer of a bridge; that of a HookedTransformer computes with what it holds.
        accessor: the name of the weight on it.
        weight: ``[in out]``, ``[head in d_head]`` (W_Q, W_K, W_V) or ``[head d_head out]`` (W_O).
    """
    component = getattr(part, _COMPONENT.get(accessor, ""), None)
    linear = getattr(component, "original_component", None)
    if linear is None:
        return
    if accessor in ("W_Q", "W_K", "W_V"):
        weight = weight.permute(1, 0, 2).flatten(1)
    elif accessor == "W_O":
        weight = weight.flatten(0, 1)
    x = torch.linspace(-1, 1, len(weight), dtype=weight.dtype, device=weight.device)[None]
    # Its forward and not the module itself: hooks of others have nothing to see here.
    got = (linear.forward(x) - linear.forward(torch.zeros_like(x))).double()
    want = (x @ weight).double()
    # Weights that are not finite are told of where they show.
    if (got - want).norm() > (1e-3 if weight.dtype.itemsize > 2 else 0.05) * want.norm() + 1e-6:
        raise ValueError(
            f"the {type(linear).__name__} of layer {layer} computes something else than its weight says ({accessor}), "
            f"so scores, masks and edits of the weight would be of another model than the one that runs; {MERGE}"
        )
