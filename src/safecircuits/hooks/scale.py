"""Scale the weight matrices of layers by α, without touching a weight.

Multiplying a matrix W by α gives ``x(αW) = (αx)W``: scaling what enters the linear map is the same, with or without a
bias. Where only the output can be reached (q, k, v, gate and in of a HookedTransformer, whose input hooks lie before
the norm), the bias is kept out: ``α(y − b) + b``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from safecircuits.hooks.attach import HookFn, attached
from safecircuits.sites import COMPONENTS, Component, HookedModel, LayerRange, ModelShape, is_bridge

ComponentSet = Literal["all", "qkv+mlp", "attn", "mlp"] | Sequence[Component]

COMPONENT_SETS: dict[str, tuple[Component, ...]] = {
    "all": COMPONENTS,
    "qkv+mlp": ("q", "k", "v", "gate", "in", "out"),
    "attn": ("q", "k", "v", "o"),
    "mlp": ("gate", "in", "out"),
}
"""``"all"`` is the method as described (all seven matrices); ``"qkv+mlp"`` leaves out the output projection, which the
paper's code left unscaled until April 2025, so that its published table was probably made without it."""

# Architectures whose only norms come after the sublayer; the bridge gives them the names of the usual ones before it.
_NORM_AFTER = {"Olmo2ForCausalLM", "Olmo3ForCausalLM"}


@contextmanager
def scaled(
    model: HookedModel,
    layers: LayerRange | Sequence[int] | Mapping[int, float],
    alpha: float | None = None,
    *,
    components: ComponentSet = "all",
) -> Iterator[None]:
    """Inside the block the model runs as if the weight matrices of ``layers`` were multiplied by ``alpha`` (§3.4.1).

    Args:
        layers: a range, 0-indexed and inclusive; or a mapping from layer to its own α (then ``alpha`` is left out).
        components: which matrices: ``"all"``, ``"qkv+mlp"``, ``"attn"``, ``"mlp"`` or a list of q, k, v, o, gate,
            in, out. Biases and norms are never scaled. Models without a gate have none.

    Raises:
        ValueError: for an α that is not positive and finite, layers outside the model, an unknown component, or one
            whose scale the architecture's own norms would cancel.
    """
    n_layers = int(model.cfg.n_layers)
    if isinstance(layers, Mapping):
        alphas = {int(layer): float(value) for layer, value in layers.items()}
        outside = [layer for layer in alphas if not 0 <= layer < n_layers]
        if outside:
            raise ValueError(f"layer {outside[0]} is outside the model, whose layers are 0 to {n_layers - 1}")
    else:
        if alpha is None:
            raise ValueError("alpha is missing: scaled(model, (first, last), alpha)")
        alphas = dict.fromkeys(LayerRange.of(layers, n_layers).indices, float(alpha))
    for value in alphas.values():
        if not 0 < value < float("inf"):
            raise ValueError(f"alpha must be a positive, finite number, not {value}")
    hooks: dict[str, HookFn] = {}
    for layer, value in alphas.items():
        for component in _checked_components(model, components):
            name, hook = _scaling_hook(model, layer, component, value)
            hooks[name] = hook
    with attached(model, hooks):
        yield


def _checked_components(model: HookedModel, components: ComponentSet) -> tuple[Component, ...]:
    if isinstance(components, str):
        if components not in COMPONENT_SETS:
            raise ValueError(
                f"components {components!r} is not one of {', '.join(COMPONENT_SETS)} or a list of matrices"
            )
        chosen: tuple[Component, ...] = COMPONENT_SETS[components]
    else:
        chosen = tuple(components)
        unknown = [c for c in chosen if c not in COMPONENTS]
        if unknown or not chosen:
            raise ValueError(f"components {list(components)} are not a non-empty choice of {', '.join(COMPONENTS)}")
    if not model.cfg.gated_mlp:
        chosen = tuple(c for c in chosen if c != "gate")
    cancelled = [c for c in chosen if c in cancelled_components(model)]
    if cancelled:
        raise ValueError(
            f"{ModelShape.of(model).architecture} normalises right after its {', '.join(cancelled)} matrices, which "
            "cancels any scale on them: choose components without them"
        )
    return chosen


def cancelled_components(model: HookedModel) -> set[Component]:
    """Matrices whose scale has no effect: q and k under QK-norm; v, o, in and out under a norm after the sublayer."""
    cfg, cancelled = model.cfg, set[Component]()
    if getattr(cfg, "use_qk_norm", False) or "blocks.0.attn.q_norm.hook_in" in model.hook_dict:
        cancelled |= {"q", "k"}
    norm_after = "blocks.0.ln1_post.hook_out" in model.hook_dict or ModelShape.of(model).architecture in _NORM_AFTER
    if getattr(cfg, "use_normalization_before_and_after", False) or norm_after:
        cancelled |= {"v", "o", "in", "out"}
    return cancelled


def _scaling_hook(model: HookedModel, layer: int, component: Component, alpha: float) -> tuple[str, HookFn]:
    block = f"blocks.{layer}"
    if is_bridge(model):
        sublayer = "attn" if component in ("q", "k", "v", "o") else "mlp"
        return f"{block}.{sublayer}.{component}.hook_in", lambda x: x * alpha
    attn, mlp = model.blocks[layer].attn, model.blocks[layer].mlp
    gated = bool(model.cfg.gated_mlp)
    # A gated MLP of a HookedTransformer adds b_in after the product with the gate, where α has no part in it.
    outputs: dict[Component, tuple[str, Tensor | None]] = {
        "q": ("attn.hook_q", attn.b_Q),
        "k": ("attn.hook_k", getattr(attn, "_b_K", attn.b_K)),
        "v": ("attn.hook_v", getattr(attn, "_b_V", attn.b_V)),
        "gate": ("mlp.hook_pre", getattr(mlp, "b_gate", None)),
        "in": ("mlp.hook_pre_linear", None) if gated else ("mlp.hook_pre", mlp.b_in),
    }
    if component == "o":
        return f"{block}.attn.hook_z", lambda z: z * alpha
    if component == "out":
        return f"{block}.mlp.hook_post", lambda post: post * alpha
    name, bias = outputs[component]
    if bias is None or not torch.any(bias != 0):
        return f"{block}.{name}", lambda y: y * alpha
    return f"{block}.{name}", lambda y: (y - bias) * alpha + bias
