"""Scale the weight matrices of layers by α, without touching a weight.

Multiplying a matrix W by α gives ``x(αW) = (αx)W``: scaling what enters the linear map is the same, with or without a
bias. Where only the output can be reached (q, k, v, gate and in of a HookedTransformer, whose input hooks lie before
the norm), the bias is kept out: ``α(y − b) + b``.

Some architectures normalise what a matrix gives before anything else sees it: queries and keys (QK-norm: Qwen3,
Gemma-3, OLMo-2), or the output of a whole sublayer (Gemma-2, Gemma-3, OLMo-2). norm(αy) = norm(y), so there a scaled
weight changes nothing. The factor is then moved to the other side of the norm, α·norm(y), which is what a model
without that norm would feel; ``substituted`` names every matrix for which this is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from safecircuits.base.arguments import checked, number, whole
from safecircuits.base.vocabulary import COMPONENTS, Component, LayerRange
from safecircuits.hooks.roles import part_name, roles_of, sublayer_of
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.expert_points import ExpertBias, require_expert_points
from safecircuits.model.mixtures import MAPS, SHARED_MAPS
from safecircuits.model.sites import (
    HookedModel,
    ModelShape,
    is_bridge,
    mixture_at,
    require_hooked,
    require_unprocessed,
)

Bias = Tensor | ExpertBias | None
"""The bias in what a hook is given, which α must leave alone."""

ComponentSet = Literal["all", "qkv+mlp", "attn", "mlp"] | Sequence[Component]

COMPONENT_SETS: dict[str, tuple[Component, ...]] = {
    "all": COMPONENTS,
    "qkv+mlp": ("q", "k", "v", "gate", "in", "out"),
    "attn": ("q", "k", "v", "o"),
    "mlp": ("gate", "in", "out"),
}
"""``"all"`` is the method as described (all seven matrices); ``"qkv+mlp"`` leaves out the output projection, which the
paper's code left unscaled until April 2025, so that its published table was probably made without it."""


@checked
@contextmanager
def scaled(
    model: HookedModel,
    layers: LayerRange | Sequence[int] | Mapping[int, float],
    alpha: float | None = None,
    *,
    components: ComponentSet = "all",
) -> Iterator[None]:
    """Inside the ``with`` block the matrices of ``layers`` act as if multiplied by ``alpha`` (Safety Layers §3.4.1).

    This is done by hooks; no weight changes. A matrix whose scale a following norm would cancel is scaled after that
    norm (``substituted`` lists them).

    Args:
        layers: a range, 0-indexed and inclusive; or a mapping from layer to its own α (then ``alpha`` is left out).
        components: which matrices: ``"all"``, ``"qkv+mlp"``, ``"attn"``, ``"mlp"`` or a list of q, k, v, o, gate,
            in, out. Biases and norms are never scaled. Models without a gate have none. In a mixture of experts gate,
            in and out are those of every expert and of the shared one; routers, which Hugging Face mostly names
            ``gate``, and what multiplies a shared expert's output, are never scaled: they choose, and do not compute.

    Raises:
        ValueError: for an α that is not positive and finite, layers outside the model, an unknown component, or a
            model whose weights were processed.

    Examples:
        >>> before = sc.generate(model, over_rejection)
        >>> with sc.scaled(model, (3, 5), alpha=1.2):
        ...     after = sc.generate(model, over_rejection)
        >>> int(sc.refused(after).sum()) <= int(sc.refused(before).sum())
        True
    """
    require_hooked(model)
    alphas = _alpha_by_layer(layers, alpha, int(model.cfg.n_layers))
    require_unprocessed(model)
    chosen = _chosen_components(model, components)
    hooks: dict[str, HookFn] = {}
    for layer, value in alphas.items():
        for name, (times, bias) in _places(model, layer, chosen).items():
            hooks[name] = _Factor(value**times, bias)
    with attached(model, hooks, per_token=True):
        yield


class RowScaling:
    """Hooks that scale each row of a batch by a profile of its own, so that one batch holds many scaled models.

    ``select`` says which profile each row has; do that before every pass whose rows differ from the last one's.

    Args:
        profiles: a mapping from layer to α each; layers that it leaves out are not scaled.

    Raises:
        ValueError: as ``scaled`` does.
    """

    def __init__(
        self, model: HookedModel, profiles: Sequence[Mapping[int, float]], *, components: ComponentSet = "all"
    ) -> None:
        n_layers = int(model.cfg.n_layers)
        checked = [_alpha_by_layer(profile, None, n_layers) if profile else {} for profile in profiles]
        require_unprocessed(model)
        chosen = _chosen_components(model, components)
        self._rows: Tensor | list[Tensor] = torch.zeros(0, dtype=torch.long)
        self._now: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}
        self._table: dict[int, Tensor] = {}
        self._last: tuple[Tensor, int, int, Tensor] | None = None
        self.hooks: dict[str, HookFn] = {}
        for layer in sorted({layer for alphas in checked for layer in alphas}):
            self._table[layer] = torch.tensor([a.get(layer, 1.0) for a in checked], dtype=torch.float64)
            for name, (times, bias) in _places(model, layer, chosen).items():
                factor = _Factor(self._alphas(layer, times), bias)
                self.hooks[name] = factor if bias is not None else self._once(layer, times, factor)

    def select(self, rows: Int[Tensor, " row"] | Sequence[Int[Tensor, " row"]]) -> None:
        """Give each row of the next passes the profile of this index; with a tensor a layer, each layer its own."""
        self._rows = rows.cpu() if isinstance(rows, Tensor) else [of_layer.cpu() for of_layer in rows]
        self._now.clear()
        self._last = None

    def _once(self, layer: int, times: int, factor: _Factor) -> HookFn:
        """Queries, keys and values are made of one tensor, gate and MLP input of another: each is scaled once."""

        def scale(y: Tensor) -> Tensor:
            if self._last is None or self._last[0] is not y or self._last[1:3] != (layer, times):
                self._last = (y, layer, times, factor(y))
            return self._last[3]

        return scale

    def _alphas(self, layer: int, times: int) -> Callable[[Tensor], Tensor]:
        def alphas(y: Tensor) -> Tensor:
            # A number times a half-precision tensor is rounded once, after the product: so it is here.
            dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
            key = (layer, times, y.device, dtype)
            if key not in self._now:
                rows = self._rows if isinstance(self._rows, Tensor) else self._rows[layer]
                self._now[key] = (self._table[layer][rows] ** times).to(y.device, dtype)
            return self._now[key].view(-1, *[1] * (y.ndim - 1))

        return alphas


def substituted(model: HookedModel, components: ComponentSet = "all") -> dict[Component, str]:
    """The chosen matrices whose scale would have no effect, and what is multiplied by α in their place.

    Empty for most architectures. Under QK-norm q and k are scaled after it, so that each multiplies the attention
    scores by α. Under a norm after the sublayer, v and o each multiply the attention's contribution to the residual
    stream, in and out that of the MLP: a block with both scaled contributes α² as much, as it would without the norm.
    (A gate acts before its nonlinearity, which no norm cancels, and stays where it is.)

    Examples:
        >>> sc.hooks.substituted(model)
        {}
    """
    chosen = _chosen_components(model, components)
    behind = roles_of(model).behind
    return {c: _moved(c, behind[i, c]) for c in chosen for i in range(int(model.cfg.n_layers)) if (i, c) in behind}


@dataclass(frozen=True)
class _Factor:
    """What a hook does: multiply all but the bias by ``alpha``, a number or what is computed for each row."""

    alpha: float | Callable[[Tensor], Tensor]
    bias: Bias

    def __call__(self, y: Tensor) -> Tensor:
        alpha = self.alpha(y) if callable(self.alpha) else self.alpha
        if self.bias is None:
            return (y * alpha).to(y.dtype)
        bias = self.bias() if isinstance(self.bias, ExpertBias) else self.bias
        return ((y - bias) * alpha + bias).to(y.dtype)


def _alpha_by_layer(
    layers: LayerRange | Sequence[int] | Mapping[int, float], alpha: float | None, n_layers: int
) -> dict[int, float]:
    if isinstance(layers, Mapping):
        if alpha is not None:
            raise ValueError("layers already give each layer its alpha, so alpha must be left out")
        if not layers:
            raise ValueError("layers is empty: name at least one layer to scale")
        alphas = {whole(layer, "a layer"): number(value, "alpha") for layer, value in layers.items()}
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
    return alphas


def _chosen_components(model: HookedModel, components: ComponentSet) -> tuple[Component, ...]:
    if isinstance(components, str):
        if components not in COMPONENT_SETS:
            raise ValueError(
                f"components {components!r} is not one of {', '.join(COMPONENT_SETS)} or a list of matrices"
            )
        chosen: tuple[Component, ...] = COMPONENT_SETS[components]
    else:
        chosen = tuple(dict.fromkeys(components))
        unknown = [c for c in chosen if c not in COMPONENTS]
        if unknown or not chosen:
            raise ValueError(f"components {list(components)} are not a non-empty choice of {', '.join(COMPONENTS)}")
    if getattr(model.cfg, "attn_only", False):
        chosen = tuple(c for c in chosen if c in COMPONENT_SETS["attn"])
        if not chosen:
            raise ValueError("this model has attention alone, so there is no MLP to scale")
    if not model.cfg.gated_mlp:
        if chosen == ("gate",):
            raise ValueError(f"{ModelShape.of(model).architecture} has no gate, so there is nothing to scale")
        chosen = tuple(c for c in chosen if c != "gate")
    return chosen


def _moved(component: Component, point: str) -> str:
    """What is multiplied by α at a point behind a norm."""
    if component in ("q", "k"):
        return "queries after QK-norm" if component == "q" else "keys after QK-norm"
    if ".attn." in point and component == "v":
        return "values after their norm"
    return f"{'attention' if sublayer_of(component) == 'attn' else 'MLP'} contribution after its norm"


def _places(model: HookedModel, layer: int, chosen: Sequence[Component]) -> dict[str, tuple[int, Bias]]:
    """By hook point: how many of the chosen matrices α acts for there (two may meet behind one norm), and the bias."""
    places: dict[str, tuple[int, Bias]] = {}
    for component in chosen:
        for name, bias in _in_mixture(model, layer, component) or [_place(model, layer, component)]:
            places[name] = (places.get(name, (0, None))[0] + 1, bias)
    return places


def _in_mixture(model: HookedModel, layer: int, component: Component) -> list[tuple[str, Bias]]:
    """The hook points for one matrix of every expert and of the shared one; none where there are no such matrices."""
    if sublayer_of(component) == "attn" or (mixture := mixture_at(model, layer)) is None:
        return []
    require_expert_points(model, layer)
    if component != "gate" and (layer, "out") in (roles := roles_of(model)).behind:
        return [(roles.behind[layer, "out"], None)]
    where = f"blocks.{layer}.mlp"
    biased = mixture.experts.has_bias and component != "out"
    bias = ExpertBias(model, layer, component) if biased else None
    shared: list[tuple[str, Bias]] = [(f"{where}.{SHARED_MAPS[component]}", None)] if mixture.shared else []
    return [(f"{where}.{MAPS[component]}", bias), *shared]


def _place(model: HookedModel, layer: int, component: Component) -> tuple[str, Tensor | None]:
    """The hook point at which α acts for a matrix, and the bias in it that α must leave alone."""
    block, sublayer, roles = f"blocks.{layer}", sublayer_of(component), roles_of(model)
    if (problem := roles.problems.get((layer, component))) is not None:
        fine = [c for c in COMPONENTS if not any((i, c) in roles.problems for i in range(int(model.cfg.n_layers)))]
        fine = [c for c in fine if c != "gate" or model.cfg.gated_mlp]
        others = f"; components={fine} can be scaled in every layer" if fine else ""
        raise ValueError(
            f"the matrix {component!r} of layer {layer} of this {ModelShape.of(model).architecture} cannot be scaled: "
            f"{problem}{others}"
        )
    if (layer, component) in roles.behind:
        return roles.behind[layer, component], None
    if is_bridge(model):
        return f"{block}.{sublayer}.{part_name(model.hook_dict, layer, component)}.hook_in", None
    attn, mlp = model.blocks[layer].attn, getattr(model.blocks[layer], "mlp", None)
    gated = bool(model.cfg.gated_mlp)
    # A gated MLP of a HookedTransformer adds b_in after the product with the gate, where α has no part in it.
    places: dict[Component, tuple[str, Tensor | None]] = {
        "q": ("attn.hook_q", attn.b_Q),
        "k": ("attn.hook_k", getattr(attn, "_b_K", attn.b_K)),
        "v": ("attn.hook_v", getattr(attn, "_b_V", attn.b_V)),
        "o": ("attn.hook_z", None),
        "gate": ("mlp.hook_pre", getattr(mlp, "b_gate", None)),
        "in": ("mlp.hook_pre_linear", None) if gated else ("mlp.hook_pre", getattr(mlp, "b_in", None)),
        "out": ("mlp.hook_post", None),
    }
    name, bias = places[component]
    return f"{block}.{name}", None if bias is None or not torch.any(bias != 0) else bias
