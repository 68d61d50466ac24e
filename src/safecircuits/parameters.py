"""A model's parameters: which of them are real, and how a mask over one naming reads in another.

A bridge has more parameters than its checkpoint. It computes with split q, k, v (gate, in) where the checkpoint has
one fused matrix, and lists both; and it adds an unembedding bias to models that have none, which gets gradients and is
lost on export. A HookedTransformer holds zeros for every bias that its architecture lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from safecircuits.models import bridge_of, hf_config_of, plain_name, skeleton_of
from safecircuits.sites import is_bridge

Masks = dict[str, Bool[Tensor, "..."]]
"""By parameter name a boolean tensor of the parameter's shape."""


def is_plain(model: Any) -> bool:
    """Whether ``model`` is a plain Hugging Face model, with no hook points."""
    return not hasattr(model, "hook_dict")


def as_hooked(model: Any) -> Any:
    """``model`` itself if it has hook points, else a bridge that shares the parameters of the Hugging Face model."""
    return bridge_of(model) if is_plain(model) else model


def checkpoint_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The parameters of the checkpoint by their Hugging Face names; a HookedTransformer's by its own names."""
    if is_plain(model):
        return dict(model.named_parameters())
    if not is_bridge(model):
        return {name: p for name, p in model.named_parameters() if p.requires_grad or torch.any(p != 0)}
    names = {name for name, _ in skeleton_of(hf_config_of(model)).named_parameters()}
    everything = model.original_model.named_parameters(remove_duplicate=False)
    return {plain_name(name): p for name, p in everything if plain_name(name) in names}


def live_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The parameters that the forward pass computes with, each entry once, by name in ``named_parameters()``.

    Raises:
        ValueError: for a bridge whose split parameters are copies (GPT-NeoX, BLOOM, Falcon): training would leave the
            checkpoint's own parameters behind.
    """
    if not is_bridge(model):
        return checkpoint_parameters(model)
    stored = checkpoint_parameters(model)
    known, fused, live = {id(p) for p in stored.values()}, set(), {}
    blocks = {id(p) for p in model.blocks.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in known:
            live[name] = parameter
        elif (owner := _owner(parameter, stored)) is not None:
            live[name] = parameter
            fused.add(id(stored[owner]))
        elif id(parameter) in blocks:
            raise ValueError(
                f"a bridged {type(model.original_model).__name__} computes with copies of its fused parameters "
                f"({plain_name(name)}), so training it would not reach the checkpoint; use a HookedTransformer or the "
                "plain Hugging Face model"
            )
    return {name: parameter for name, parameter in live.items() if id(parameter) not in fused}


def in_checkpoint_names(bridge: Any, masks: Mapping[str, Tensor], stored: Mapping[str, nn.Parameter]) -> Masks:
    """Masks by a bridge's own parameter names as masks by the names of ``stored``, whose memory the bridge shares.

    Raises:
        ValueError: if a masked parameter of the bridge is a copy, so that no stored one corresponds to it.
    """
    own = dict(bridge.named_parameters())
    names = {id(p): name for name, p in stored.items()}
    result: Masks = {}
    for name, mask in masks.items():
        parameter = own[name]
        target = names.get(id(parameter)) or _owner(parameter, stored)
        if target is None and mask.all():
            continue  # all of a copy: its sublayer is frozen whole, and the fused parameter with it
        if target is None:
            raise ValueError(
                f"{plain_name(name)} of a bridged {type(bridge.original_model).__name__} is a copy of part of a fused "
                "parameter, so its units cannot be found in the checkpoint; use a HookedTransformer"
            )
        whole = stored[target]
        into = result.setdefault(target, torch.zeros(whole.shape, dtype=torch.bool))
        offset = (parameter.data_ptr() - whole.data_ptr()) // whole.element_size()
        into.as_strided(parameter.shape, parameter.stride(), offset).logical_or_(mask)
    return result


def _owner(view: Tensor, stored: Mapping[str, nn.Parameter]) -> str | None:
    """The stored parameter in whose memory ``view`` lies."""
    start = view.data_ptr()
    for name, whole in stored.items():
        if whole.data_ptr() <= start < whole.data_ptr() + whole.numel() * whole.element_size():
            return name
    return None
