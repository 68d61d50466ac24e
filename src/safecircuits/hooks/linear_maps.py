"""The linear maps of a layer on either backend: weights as ``[out in]``, what enters them and what leaves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.vocabulary import COMPONENTS, Component, Site
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.offload import present
from safecircuits.model.own_weights import map_behind, packed_map, read_weight
from safecircuits.model.packed import WRITING
from safecircuits.model.sites import HookedModel, is_bridge, require_units, sublayer_of

_ATTENTION = ("q", "k", "v", "o")
_ACCESSOR: dict[Component, str] = {
    "q": "W_Q", "k": "W_K", "v": "W_V", "o": "W_O", "gate": "W_gate", "in": "W_in", "out": "W_out",
}  # fmt: skip


def _site(component: Component) -> Site:
    return "attn" if component in _ATTENTION else "mlp"


def components_of(model: HookedModel, components: Sequence[Component] | None = None) -> tuple[Component, ...]:
    """The matrices a layer of this model has, or those of ``components`` among them.

    Raises:
        ValueError: for a matrix that this model does not have.
    """
    there = tuple(c for c in COMPONENTS if c != "gate" or model.cfg.gated_mlp)
    missing = [c for c in components or () if c not in there]
    if missing:
        raise ValueError(f"the model's layers have no matrix {missing[0]!r}; they have {', '.join(there)}")
    return there if components is None else tuple(c for c in there if c in components)


@dataclass(frozen=True)
class Matrix:
    """One weight matrix in place: reading gives ``[out in]``, writing changes the parameter."""

    view: Tensor
    """``[in out]``, ``[head in d_head]`` (q, k, v) or ``[head d_head out]`` (o), in the parameter's own memory."""
    component: Component
    owner: Tensor
    """The parameter."""
    elsewhere: str = ""
    """How the map holds its weight, where writing to the view would not reach it: quantised or offloaded."""

    @classmethod
    def named(cls, model: HookedModel, key: str) -> Matrix:
        """The matrix that results call ``layer.component``, such as ``"3.out"``."""
        layer, _, component = key.partition(".")
        return cls.of(model, int(layer), cast(Component, component))

    @classmethod
    def of(cls, model: HookedModel, layer: int, component: Component) -> Matrix:
        """The matrix of a layer.

        Raises:
            ValueError: if the model computes with a copy of the matrix, which writing would not reach, or with more
                than the matrix (an unmerged adapter). That of a quantised or offloaded model is read, never written.
        """
        name, site = _ACCESSOR[component], _site(component)
        require_units(model, site, (layer,))
        part = sublayer_of(model, layer, site)
        if component in ("k", "v") and not is_bridge(model) and model.cfg.n_key_value_heads is not None:
            name = f"_{name}"  # under GQA a HookedTransformer's W_K is an expanded copy
        with present(model, (layer,)):
            weight = read_weight(part, name, layer, next(iter(model.parameters())), int(model.cfg.d_head))
        if packed_map(part, name) is not None:
            return cls(weight, component, weight, "quantised")
        if getattr(map_behind(part, name), "weight", weight).is_meta:
            return cls(weight, component, weight, "offloaded")
        view: Tensor = getattr(part, name)
        known = {id(p) for p in part.parameters()}
        owner = view if id(view) in known else view._base
        if owner is None or id(owner) not in known:
            raise ValueError(f"{name} of layer {layer} is a copy of its parameter; use a HookedTransformer")
        return cls(weight, component, owner)

    def read(self) -> Float[Tensor, "out in"]:
        """The matrix as an ``nn.Linear`` holds it."""
        if self.component == "o":
            return self.view.flatten(0, 1).T
        return self.view.T if self.view.ndim == 2 else self.view.transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def write(self, value: Float[Tensor, "out in"]) -> None:
        """Put ``value`` in its place.

        Raises:
            ValueError: for a matrix that is quantised or offloaded.
        """
        if self.elsewhere:
            raise ValueError(f"the matrix {self.component!r} is {self.elsewhere}, and writing to it {WRITING}")
        if self.component == "o":
            self.view.copy_(value.T.reshape(self.view.shape))
        elif self.view.ndim == 2:
            self.view.copy_(value.T)
        else:
            self.view.copy_(rearrange(value, "(head d_head) d_in -> head d_in d_head", head=len(self.view)))


Seen = Callable[[int, Component, Tensor], Tensor | None]
"""Called with layer, matrix and ``[batch pos channel]``; what it returns takes the activation's place."""


@contextmanager
def watched(
    model: HookedModel,
    components: Sequence[Component],
    *,
    inputs: Seen | None = None,
    outputs: Seen | None = None,
    layers: Sequence[int] | None = None,
) -> Iterator[None]:
    """Inside the block ``inputs`` sees what enters each linear map and ``outputs`` what leaves it, in every layer.

    Args:
        layers: in these layers alone.
    """
    hooks: dict[str, list[HookFn]] = {}
    with ExitStack() as stack:
        for layer in range(int(model.cfg.n_layers)) if layers is None else layers:
            for component in components:
                for way, seen in (("in", inputs), ("out", outputs)):
                    if seen is None:
                        continue
                    fn = _flattened(seen, layer, component)
                    point = _hook_point(model, layer, component, way)
                    if point is None:
                        stack.callback(_on_module(model, layer, component, way, fn).remove)
                    else:
                        hooks.setdefault(point, []).append(fn)
        stack.enter_context(attached(model, {name: _composed(fns) for name, fns in hooks.items()}))
        yield


def _flattened(seen: Seen, layer: int, component: Component) -> HookFn:
    def run(activation: Tensor) -> Tensor | None:
        out = seen(layer, component, activation.flatten(2))  # [batch pos head d_head] counts channels too
        return None if out is None else out.reshape(activation.shape)

    return run


def _composed(fns: Sequence[HookFn]) -> HookFn:
    def run(activation: Tensor) -> Tensor | None:
        for fn in fns:
            out = fn(activation)
            activation = activation if out is None else out
        return activation

    return run


def _hook_point(model: HookedModel, layer: int, component: Component, way: str) -> str | None:
    """The hook point before or after a linear map; None where a HookedTransformer has none that fires by itself."""
    block = f"blocks.{layer}"
    if is_bridge(model):
        sublayer = "attn" if component in _ATTENTION else "mlp"
        return f"{block}.{sublayer}.{component}.hook_{way}"
    gated = bool(model.cfg.gated_mlp)
    points: dict[tuple[str, str], str] = {
        ("q", "out"): "attn.hook_q",
        ("k", "out"): "attn.hook_k",
        ("v", "out"): "attn.hook_v",
        ("o", "in"): "attn.hook_z",
        ("gate", "out"): "mlp.hook_pre",
        ("in", "out"): "mlp.hook_pre_linear" if gated else "mlp.hook_pre",
        ("out", "in"): "mlp.hook_post",
    }
    point = points.get((component, way))
    return point and f"{block}.{point}"


def _on_module(model: HookedModel, layer: int, component: Component, way: str, fn: HookFn) -> Any:
    module = sublayer_of(model, layer, _site(component))
    if way == "out":
        return module.register_forward_hook(lambda _module, _args, output: fn(output))
    name = {"q": "query_input", "k": "key_input", "v": "value_input"}.get(component)

    def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The hook only looks: what enters q, k and v enters each of them, and cannot be replaced for one alone.
        fn(kwargs[name] if name in kwargs else args[0])

    return module.register_forward_pre_hook(before, with_kwargs=True)
