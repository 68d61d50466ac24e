"""The plain Hugging Face model inside a bridge, for passes that nobody else's hooks watch.

A bridge calls dozens of hook points a layer whether or not anything is attached to them: that costs nothing beside a
large model's matrices, and more than the matrices of a small one. The plain model shares the bridge's parameters, so
it computes the same to rounding, with the attention that Hugging Face would use. Only where the library's own hooks are
the only ones, and each of them has its place in the plain model, does it stand in for the bridge.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from safecircuits.model.attach import HookFn, every_module, require_fired
from safecircuits.model.equivalence import OTHERWISE_PLAIN
from safecircuits.model.sites import HookedModel, is_bridge

_KNOWN: weakref.WeakKeyDictionary[Any, PlainModel | None] = weakref.WeakKeyDictionary()


class PlainModel:
    """A bridge's parameters in Hugging Face's own modules, and where the bridge's hook points lie in them."""

    def __init__(self, bridge: Any) -> None:
        from safecircuits.model.bridge import plain_name
        from safecircuits.model.load import to_hugging_face

        self.model: Any = to_hugging_face(bridge).to(next(bridge.parameters()).device)
        self._addresses = _addresses(bridge)
        self.added: list[Tensor] = []
        inside = {id(module): plain_name(name) for name, module in bridge.original_model.named_modules()}
        self._modules: dict[str, nn.Module] = {}
        own = dict(self.model.named_modules())
        for layer, block in enumerate(bridge.blocks):
            for name, component in _components(f"blocks.{layer}", block):
                path = inside.get(id(component))  # none for parts that the bridge has made itself
                if path in own:
                    self._modules[name] = own[path]
        # OPT's MLP has all tokens in one row; the bridge's hook points, not the modules, know which are whose.
        points = bridge.hook_dict.items()
        self._flat = {name for name, p in points if "Unflatten" in type(getattr(p, "hook_conversion", None)).__name__}
        self._d_head, self._n_layers = int(bridge.cfg.d_head), int(bridge.cfg.n_layers)

    def fits(self, bridge: Any) -> bool:
        """Whether every parameter still is the bridge's own, and what the bridge adds to them still is zero."""
        return _addresses(bridge) == self._addresses and not any(bool(p.any()) for p in self.added)

    def block(self, layer: int) -> nn.Module:
        """The decoder layer."""
        return self._modules[f"blocks.{layer}"]

    def per_position(self, layer: int) -> list[nn.Module]:
        """The parts of a decoder layer that treat every position by itself and make no keys or values."""
        names = (f"blocks.{layer % self._n_layers}.{part}" for part in ("attn.q", "attn.o", "mlp"))
        return [self._modules[name] for name in names if name in self._modules]

    def has(self, names: Mapping[str, HookFn]) -> bool:
        """Whether each hook point has its place here."""
        return all(self._place(name) is not None for name in names)

    @contextmanager
    def attached(self, hooks: Mapping[str, HookFn]) -> Iterator[dict[str, int]]:
        """As ``safecircuits.attached``."""
        fired = dict.fromkeys(hooks, 0)
        handles = []
        try:
            for name, fn in hooks.items():
                place = self._place(name)
                assert place is not None
                module, end = place
                by_head = self._d_head if name.endswith("attn.hook_z") else None
                if end == "in":
                    handles.append(module.register_forward_pre_hook(_before(name, fn, fired, by_head)))
                else:
                    handles.append(module.register_forward_hook(_after(name, fn, fired)))
            yield fired
        finally:
            for handle in handles:
                handle.remove()
        require_fired(fired)

    def _place(self, name: str) -> tuple[nn.Module, str] | None:
        owner, _, point = name.rpartition(".")
        if name in self._flat:
            return None
        if point == "hook_resid_post":
            module: nn.Module | None = self._modules.get(owner)
            return None if module is None else (module, "out")
        if point in ("hook_post", "hook_z"):
            owner, point = f"{owner}.{'out' if point == 'hook_post' else 'o'}", "hook_in"
        module = self._modules.get(owner)
        if not isinstance(module, nn.Linear) and "norm" not in type(module).__name__.lower():
            return None
        return (module, point[5:]) if module is not None and point in ("hook_in", "hook_out") else None


def plain_model(model: HookedModel) -> PlainModel | None:
    """The plain model of a bridge, or None where there is none that computes the same.

    There is none for a HookedTransformer, and where the bridge's parameters are not those of its architecture:
    adapters, quantised or fused weights, several devices. Nor for one whose architecture itself computes padded rows
    otherwise, as was seen when it was loaded.
    """
    if not is_bridge(model) or hasattr(model, OTHERWISE_PLAIN):
        return None
    if any("forward" in m.__dict__ for m in every_module(model)):
        return None
    if model in _KNOWN:
        known = _KNOWN[model]
        if known is None or known.fits(model):
            return known
    _KNOWN[model] = _built(model)
    return _KNOWN[model]


def _built(bridge: Any) -> PlainModel | None:
    try:
        plain = PlainModel(bridge)
    except (ValueError, KeyError, RuntimeError, AttributeError):  # it has no such model, as export would say
        return None
    shared = {_storage(p) for p in plain.model.parameters()}
    theirs = [p for module in every_module(bridge) for p in module._parameters.values() if p is not None]
    # The bridge splits fused matrices, and for some architectures into copies, which training would move alone. It
    # also adds biases of zero, which must stay zero.
    plain.added = [p for p in theirs if _storage(p) not in shared]
    same = shared <= {_storage(p) for p in theirs} and all(p.ndim == 1 for p in plain.added)
    same = same and plain.fits(bridge) and len({p.device for p in theirs}) == 1
    return plain if same and all(f"blocks.{layer}" in plain._modules for layer in range(len(bridge.blocks))) else None


def _components(name: str, component: Any) -> Iterator[tuple[str, nn.Module]]:
    """A bridge component and those inside it, by the names that their hook points have."""
    yield name, component
    for child in getattr(component, "submodules", {}):
        yield from _components(f"{name}.{child}", getattr(component, child))


def _storage(parameter: Tensor) -> int:
    return parameter.untyped_storage().data_ptr()


def _addresses(model: Any) -> list[int]:
    return [p.data_ptr() for p in model.original_model.parameters()]


def _before(name: str, fn: HookFn, fired: dict[str, int], d_head: int | None) -> Any:
    def run(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        fired[name] += 1
        x = args[0]
        new = fn(x if d_head is None else x.reshape(*x.shape[:-1], -1, d_head))
        return None if new is None else (new.reshape(x.shape), *args[1:])

    return run


def _after(name: str, fn: HookFn, fired: dict[str, int]) -> Any:
    def run(_module: nn.Module, _args: Any, output: Any) -> Any:
        fired[name] += 1
        if not isinstance(output, tuple):
            return fn(output)
        new = fn(output[0])
        return None if new is None else (new, *output[1:])

    return run
