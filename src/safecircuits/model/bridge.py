"""Bridges over Hugging Face models, and the Hugging Face side of any hooked model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from safecircuits.base.notices import notify
from safecircuits.model.attach import marked
from safecircuits.model.copies import let_copies_be_apart
from safecircuits.model.expert_points import add_expert_points
from safecircuits.model.offload import bring_back, maps_of, require_all_of_packed, send_away
from safecircuits.model.packed import held_tensors, packing_of, settle
from safecircuits.model.sites import HookedModel, is_bridge, resid_post


@dataclass(frozen=True)
class BuiltFrom:
    """What a HookedTransformer was built from and does not keep itself."""

    config: Any
    generation_config: Any


BUILT_FROM = "_safecircuits_source"
"""Where a HookedTransformer that was built here keeps its ``BuiltFrom``, so that its copies have it, too."""


def hf_config_of(model: HookedModel) -> Any:
    """The Hugging Face configuration behind a hooked model."""
    if is_bridge(model):
        return model.original_model.config
    return source_of(model).config


def generation_config_of(model: Any) -> Any:
    """The generation settings behind a hooked model, or a plain one's own; None if there are none."""
    if is_bridge(model):
        return getattr(model.original_model, "generation_config", None)
    if not hasattr(model, "hook_dict"):
        return getattr(model, "generation_config", None)
    return getattr(getattr(model, BUILT_FROM, None), "generation_config", None)


def source_of(model: Any) -> BuiltFrom:
    source: BuiltFrom | None = getattr(model, BUILT_FROM, None)
    if source is None:
        raise ValueError(
            "this HookedTransformer was not built by load_model, so its Hugging Face configuration is unknown; "
            "load the checkpoint with load_model(..., backend='hooked')"
        )
    return source


def plain_name(name: str) -> str:
    """A bridge's parameter name as Hugging Face spells it."""
    return name.replace("._original_component", "")


def bridge_of(hf_model: nn.Module) -> Any:
    """A bridge over the parameters of a Hugging Face model, which itself stays as it is."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    # A bridge rewires the modules of the model it wraps. A copy of the modules over the same parameters takes no
    # memory and leaves the caller's object as it was.
    require_all_of_packed(hf_model)
    if packing_of(hf_model) is not None:
        settle(hf_model)
    shared: dict[int, Any] = {id(t): t for t in held_tensors(hf_model)} | maps_of(hf_model)
    wrapped: Any = copy.deepcopy(hf_model, shared)
    back = bring_back(wrapped)
    if packing_of(wrapped) is None:
        forget_packing(wrapped, wrapped.config)
    _restore_forward(wrapped)
    architecture = type(wrapped).__name__
    wrapped.config.architectures = [architecture]
    try:
        bridge = build_bridge_from_module(wrapped, architecture, hf_config=wrapped.config)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError, AssertionError) as error:
        reason = str(error) or f"{type(error).__name__} while its parts were put together"
        raise ValueError(f"transformer-lens cannot make a bridge of this {architecture}: {reason}") from error
    if resid_post(0) not in bridge.hook_dict:
        raise ValueError(
            f"{architecture} is not a decoder-only language model: its bridge has no {resid_post(0)}, on which every "
            "analysis here rests"
        )
    _round_rotated(bridge)
    _bound_scores(bridge)
    let_copies_be_apart(bridge)
    add_expert_points(bridge)
    send_away(bridge, back)
    return bridge.eval()


def forget_packing(*owners: Any) -> None:
    """Take from models and configurations what calls their weights, plain ones now, packed; exports would repeat it."""
    notes = ("quantization_config", "hf_quantizer", "is_quantized", "quantization_method", "_pre_quantization_dtype")
    for owner in owners:
        for name in notes:
            owner.__dict__.pop(name, None)


def _restore_forward(copied: nn.Module) -> None:
    """Give modules whose forward a trainer has replaced, for a loss or a precision of its own, their own again.

    Such a forward may run the original's modules, past all hooks, or leave the cache unfilled. Accelerate's dispatch
    hooks are partials, are copied together with the module they belong to, and stay.
    """
    replaced = [module for module in copied.modules() if _has_forward_of_another(module)]
    for module in replaced:
        del module.__dict__["forward"]
    if replaced:
        names = ", ".join(sorted({type(module).__name__ for module in replaced}))
        notify(
            f"the forward of {names} had been replaced by a function (a trainer does that); the analyses run the "
            "architecture's own"
        )


def _has_forward_of_another(module: nn.Module) -> bool:
    own = module.__dict__.get("forward")
    if isinstance(own, MethodType):
        return own.__func__ is not type(module).forward
    return isinstance(own, FunctionType)


def _round_rotated(bridge: Any) -> None:
    """Give rotated queries and keys the model's own precision again, as Hugging Face does for every architecture.

    OLMo rotates in float32; TransformerLens leaves it at that, and cannot multiply such patterns with 16-bit values.
    """
    dtype = next(bridge.parameters()).dtype
    if not str(bridge.original_model.config.model_type).startswith("olmo") or dtype == torch.float32:
        return

    def round_again(_module: nn.Module, _inputs: Any, rotated: Tensor) -> Tensor:
        return rotated.to(dtype)

    marked(round_again, "per_token")
    for block in bridge.blocks:
        for point in (block.attn.hook_rot_q, block.attn.hook_rot_k):
            point.register_forward_hook(round_again)


def _bound_scores(bridge: Any) -> None:
    """Keep masked attention scores finite in the float32 in which a bridge takes the softmax, whatever its own dtype.

    The mask of a float64 model is that dtype's lowest number, float32's minus infinity: the softmax of a padded
    position, which sees nothing but masked ones, would be NaN, and through the values NaN for all.
    """
    for block in bridge.blocks:
        point = getattr(getattr(block, "attn", None), "hook_attn_scores", None)
        if point is not None:
            point.register_forward_hook(_bounded)


def _bounded(_module: nn.Module, _inputs: Any, scores: Tensor) -> Tensor | None:
    return scores.clamp(min=torch.finfo(torch.float32).min) if scores.dtype == torch.float64 else None


marked(_bounded, "part_of_model")
