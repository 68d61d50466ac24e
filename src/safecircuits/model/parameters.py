"""A model's parameters: which of them are real, and how a mask over one naming reads in another.

A bridge has more parameters than its checkpoint. It computes with split q, k, v (gate, in) where the checkpoint has
one fused matrix, and lists both, as views of one memory or as copies (see ``fused``); and it adds an unembedding bias
to models that have none, which gets gradients and is lost on export. A HookedTransformer holds zeros for every bias
that its architecture lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from safecircuits.model.bridge import bridge_of, hf_config_of, plain_name
from safecircuits.model.fused import copies_of_fused
from safecircuits.model.modules import meta_model_of
from safecircuits.model.offload import require_in_place
from safecircuits.model.sites import is_bridge

Masks = dict[str, Bool[Tensor, "..."]]
"""By parameter name a boolean tensor of the parameter's shape."""


def is_plain(model: Any) -> bool:
    """Whether ``model`` is a plain Hugging Face model, with no hook points."""
    return not hasattr(model, "hook_dict")


def as_hooked(model: Any) -> Any:
    """``model`` itself if it has hook points, else a bridge that shares the parameters of the Hugging Face model."""
    return bridge_of(model) if is_plain(model) else model


def checkpoint_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The parameters of the checkpoint by their Hugging Face names; a HookedTransformer's by its own names.

    Raises:
        ValueError: for a model whose weights are quantised or offloaded.
    """
    require_in_place(model, "freezing, training or editing it")
    if is_plain(model):
        return dict(model.named_parameters())
    if not is_bridge(model):
        return {name: p for name, p in model.named_parameters() if p.requires_grad or torch.any(p != 0)}
    names = {name for name, _ in meta_model_of(hf_config_of(model)).named_parameters()}
    everything = model.original_model.named_parameters(remove_duplicate=False)
    return {plain_name(name): p for name, p in everything if plain_name(name) in names}


def live_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The parameters that the forward pass computes with, each entry once, by name in ``named_parameters()``.

    Those of a bridge may be views or copies of parts of the checkpoint's own; ``fuse_again`` brings copies back.

    Raises:
        ValueError: for a bridge with parameters of its own that no way leads back from to the checkpoint, and for a
            model whose weights are quantised or offloaded.
    """
    if not is_bridge(model):
        return checkpoint_parameters(model)
    stored = checkpoint_parameters(model)
    known, fused, live = {id(p) for p in stored.values()}, set(), {}
    copies = {id(part): whole for copied in copies_of_fused(model) for part, whole in copied.tensors()}
    blocks = {id(p) for p in model.blocks.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in known:
            live[name] = parameter
        elif (owner := _owner(parameter, stored)) is not None:
            live[name] = parameter
            fused.add(id(stored[owner]))
        elif id(parameter) in copies:
            live[name] = parameter
            fused.add(id(copies[id(parameter)]))
        elif id(parameter) in blocks:
            raise ValueError(
                f"a bridged {type(model.original_model).__name__} computes with a parameter of its own "
                f"({plain_name(name)}), so training it would not reach the checkpoint; use a HookedTransformer or the "
                "plain Hugging Face model"
            )
    return {name: parameter for name, parameter in live.items() if id(parameter) not in fused}


def in_checkpoint_names(bridge: Any, masks: Mapping[str, Tensor], stored: Mapping[str, nn.Parameter]) -> Masks:
    """Masks by a bridge's own parameter names as masks by the names of ``stored``, which the bridge computes with.

    Raises:
        ValueError: if a masked parameter of the bridge is neither a stored one nor a view or copy of part of one.
    """
    own = dict(bridge.named_parameters())
    names = {id(p): name for name, p in stored.items()}
    copies = {
        id(part): (names[id(whole)], copied.rows)
        for copied in copies_of_fused(bridge)
        for part, whole in copied.tensors()
    }
    result: Masks = {}
    for name, mask in masks.items():
        parameter = own[name]
        target, rows = copies.get(id(parameter), (names.get(id(parameter)) or _owner(parameter, stored), None))
        if target is None:
            raise ValueError(
                f"{plain_name(name)} of a bridged {type(bridge.original_model).__name__} is no part of the checkpoint, "
                "so its units cannot be found there; use a HookedTransformer"
            )
        whole = stored[target]
        into = result.setdefault(target, torch.zeros(whole.shape, dtype=torch.bool))
        if rows is not None:
            into[rows] |= mask
            continue
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
