"""Methods of other libraries, which work on Hugging Face's own modules."""

from __future__ import annotations

from typing import Any

from safecircuits.model.fused import copies_of_fused
from safecircuits.model.load import to_hugging_face
from safecircuits.model.sites import is_bridge


def hugging_face_model(model: Any, what: str) -> Any:
    """The Hugging Face model of a bridge, which shares its weights.

    Raises:
        ValueError: for another model, and for a bridge that computes with copies of fused matrices.
    """
    if not is_bridge(model) or copies_of_fused(model):
        raise ValueError(
            f"{what} on Hugging Face's own modules: give a TransformerBridge of an architecture with "
            "separate query, key and value matrices"
        )
    return to_hugging_face(model)
