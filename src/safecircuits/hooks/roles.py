"""What the hook points of a layer's matrices do, found by trying and not by their names.

Names mislead. ``mlp.gate`` of a mixture of experts is its router. Norms behind a matrix, which cancel any scale of it,
have other names and places in every architecture. So on a few tokens each matrix's output is replaced by multiples of
itself, and what follows is watched: a point that stays the same under a·y and 2a·y and changes its sign under −a·y lies
behind a norm; a matrix of neurons changes those inputs of the output projection that its changed outputs belong to.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from safecircuits.base.vocabulary import COMPONENTS, Component
from safecircuits.model.attach import without_hooks
from safecircuits.model.forward import device_of, logits, n_embeddings
from safecircuits.model.sites import HookedModel, is_bridge, mixture_at
from safecircuits.prompts.batching import Batch

Change = Callable[[Tensor], Tensor]

_TOKENS = 6
_ALIKE = 0.02  # of a value's size: rounding in half precision, and a bias beside a large multiple
_SEEN = 1e-5  # of a block's output: more than one row of a batch may differ from an equal one
_PERIOD = 4
_SMALLER = tuple(2.0**-k for k in range(-1, 12))  # of the residual stream's size, or 1: how large an output is made
_TINY = 0.02  # of what a norm is given: what is smaller may vanish beside the ε with which the norm divides
_FELT = 0.1  # of what there is to feel: a norm of y alone passes on at most 0.02 at these sizes, one of a sum 0.3

_NONE = "the layer has none of its own that every token goes through (in a mixture of experts each expert has one)"


@dataclass
class Roles:
    """What was found, by layer and matrix."""

    problems: dict[tuple[int, Component], str] = field(default_factory=dict)
    """Why a scale of this matrix cannot be done by a hook."""
    behind: dict[tuple[int, Component], str] = field(default_factory=dict)
    """The hook point behind the norm that cancels a scale of this matrix."""


_KNOWN: weakref.WeakKeyDictionary[Any, Roles] = weakref.WeakKeyDictionary()
_ALIKE_MODELS: dict[str, Roles] = {}
"""By configuration and modules."""


def roles_of(model: HookedModel) -> Roles:
    """The roles of the matrices of every layer, found once a configuration by about ten passes over a few tokens."""
    if model not in _KNOWN:
        key = _structure(model)
        if key not in _ALIKE_MODELS:
            with without_hooks(model), torch.inference_mode():
                _ALIKE_MODELS[key] = _Trial(model).roles()
        _KNOWN[model] = _ALIKE_MODELS[key]
    return _KNOWN[model]


def _structure(model: HookedModel) -> str:
    """What two models have in common that compute the same but for their weights."""
    config = model.original_model.config if is_bridge(model) else model.cfg
    whole: nn.Module = getattr(model, "original_model", model)  # type: ignore[arg-type]
    modules = [(name, type(module).__qualname__) for name, module in whole.named_modules()]
    dtype = next(iter(model.parameters())).dtype
    return hashlib.sha256(repr((type(model), config.to_dict(), dtype, modules)).encode()).hexdigest()


def sublayer_of(component: Component) -> str:
    """``"attn"`` or ``"mlp"``: where a matrix is."""
    return "attn" if component in ("q", "k", "v", "o") else "mlp"


class _Trial:
    """Passes over the same few tokens in which every block is given what it is given without any change."""

    def __init__(self, model: HookedModel) -> None:
        self.model, self.n_layers = model, int(model.cfg.n_layers)
        self.ids = torch.arange(1, _TOKENS + 1, device=device_of(model)) * 7 % n_embeddings(model)
        self.places = _places(model)
        self.usual = self.run(1, {})

    def run(self, rows: int, changes: Mapping[str, Change]) -> dict[str, Tensor]:
        """What was at each place that fired, in order, with one row a variant of the changes."""
        seen: dict[str, Tensor] = {}

        def watch(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> Tensor | None:
                value = output
                if name in changes:
                    value = changes[name](output).reshape(output.shape)
                elif name.endswith("hook_resid_pre") and rows > 1:
                    value = self.usual[name].expand(rows, *output.shape[1:])
                if isinstance(value, Tensor) and value.ndim > 1 and len(value) in (rows, rows * _TOKENS):
                    # OPT's MLP has the tokens of all rows one after the other.
                    flat = len(value) == rows * _TOKENS
                    seen[name] = (value.reshape(rows, _TOKENS, *value.shape[1:]) if flat else value).detach().clone()
                return value if value is not output else None

            return hook

        handles = [place.register_forward_hook(watch(name)) for name, place in self.places.items()]
        try:
            ids = self.ids.expand(rows, -1)
            logits(self.model, Batch((), ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)))
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def roles(self) -> Roles:
        roles = Roles()
        self._missing(roles)
        self._no_neurons(roles)
        for component in COMPONENTS:
            if component != "gate":
                self._behind_norms(roles, component)
        return roles

    def _missing(self, roles: Roles) -> None:
        for layer in range(self.n_layers):
            for component in COMPONENTS:
                if component == "gate" and not self.model.cfg.gated_mlp:
                    continue
                if sublayer_of(component) == "mlp" and mixture_at(self.model, layer) is not None:
                    continue  # each expert has its own, at points that are not tried here
                where = f"blocks.{layer}.{sublayer_of(component)}.{component}"
                absent = [end for end in (f"{where}:in", f"{where}:out") if end not in self.usual]
                if absent and not (absent == [f"{where}:in"] and component not in ("o", "out")):
                    roles.problems[layer, component] = _NONE

    def _no_neurons(self, roles: Roles) -> None:
        """Outputs of gate and in must be the neurons that enter the output projection, one for one."""
        pair: tuple[Component, ...] = ("gate", "in")
        there = [(i, c) for i in range(self.n_layers) for c in pair if f"blocks.{i}.mlp.{c}:out" in self.usual]
        changes: dict[str, Change] = {}
        for layer, component in there:
            name = f"blocks.{layer}.mlp.{component}:out"
            changes[name] = _some_tripled(self.usual[name], pair.index(component))
        seen = self.run(3, changes) if changes else {}
        for layer, component in there:
            read = seen.get(f"blocks.{layer}.mlp.out:in")
            if (layer, "out") in roles.problems or read is None:
                roles.problems[layer, component] = _NONE
                continue
            row = 1 + pair.index(component)
            moved = ~torch.isclose(read[row], read[0], rtol=1e-3, atol=1e-6).flatten(0, -2).all(0)
            mine = torch.arange(len(moved), device=moved.device) % _PERIOD == pair.index(component)
            same_size = self.usual[f"blocks.{layer}.mlp.{component}:out"].shape[-1] == read.shape[-1]
            if not same_size or bool((moved & ~mine).any()) or not bool(moved.any()):
                roles.problems[layer, component] = "what it gives are not the MLP's neurons, one for one"

    def _behind_norms(self, roles: Roles, component: Component) -> None:
        large = 16.0 if next(iter(self.model.parameters())).dtype == torch.float16 else 1e3
        names = {i: f"blocks.{i}.{sublayer_of(component)}.{component}:out" for i in range(self.n_layers)}
        names = {i: name for i, name in names.items() if name in self.usual and (i, component) not in roles.problems}
        if not names:
            return
        changes: dict[str, Change] = {}
        for layer, name in names.items():
            beside = max(1.0, _size(self.usual[f"blocks.{layer}.hook_resid_pre"]))
            sizes = [large, 2 * large, -large, 0.0, *(part * beside for part in _SMALLER)]
            changes[name] = _of_sizes(self.usual[name], sizes)
        seen = self.run(4 + len(_SMALLER), changes)
        wanting: dict[int, list[str]] = {}
        for layer in names:
            if not self._is_cancelled(layer, component, seen):
                continue
            candidates = [n for n in seen if n.startswith(f"blocks.{layer}.") and _is_normed(seen[n])]
            if component in ("q", "k"):  # a sharp pattern may pass no sign on to the rest of the block
                candidates = [n for n in candidates if ".attn." in n and not n.endswith("hook_attn_scores")]
            # A norm's own output is the surest place, and one that the plain Hugging Face model has too.
            ends = (".hook_out", "hook_rot_q", "hook_rot_k", "hook_attn_out", "hook_mlp_out", "hook_normalized")
            wanting[layer] = [n for end in ends for n in candidates if n.endswith(end) and ":" not in n]
        self._choose(roles, component, wanting)

    def _is_cancelled(self, layer: int, component: Component, seen: dict[str, Tensor]) -> bool:
        """Whether what the matrix gives is felt, and its size is not."""
        if component in ("q", "k"):
            return any(_is_normed(value) for name, value in seen.items() if name.startswith(f"blocks.{layer}.attn."))
        after = seen[f"blocks.{layer}.hook_resid_post"].double()
        once, twice, _, never = after[:4]
        if (twice - once).norm() >= _ALIKE * (once - never).norm():
            return False
        # A norm of the whole residual stream (OPT-350m) forgets it beside a large y, and feels every size of a smaller
        # one. Not counted is what is so small that a norm of y alone feels it too, beside its ε.
        end = f"blocks.{layer}.{sublayer_of(component)}.{'o' if sublayer_of(component) == 'attn' else 'out'}:out"
        written = seen.get(end, seen[f"blocks.{layer}.{sublayer_of(component)}.{component}:out"]).double()
        return not any(
            _size(given - written[3]) >= _TINY and (double - single).norm() >= _FELT * (single - never).norm()
            for given, single, double in zip(written[5:], after[5:], after[4:-1], strict=True)
        )

    def _choose(self, roles: Roles, component: Component, wanting: dict[int, list[str]]) -> None:
        """The first point of each layer at which a factor is felt at the end of the block."""
        while wanting:
            tried = {layer: points[0] for layer, points in wanting.items() if points}
            for layer in set(wanting) - set(tried):
                roles.problems[layer, component] = "a norm cancels any scale of it, and no hook point lies behind it"
            sizes = {name: _size(self.usual[name]) for name in tried.values()}
            changes = {name: _of_sizes(self.usual[name], [size, 2 * size]) for name, size in sizes.items()}
            seen = self.run(2, changes) if tried else {}
            left: dict[int, list[str]] = {}
            for layer, name in tried.items():
                once, twice = seen[f"blocks.{layer}.hook_resid_post"].double()
                if (twice - once).norm() > _SEEN * once.norm():
                    roles.behind[layer, component] = name
                else:
                    left[layer] = wanting[layer][1:]
            wanting = left


def _size(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt().clamp(min=1e-30))


def _of_sizes(usual: Tensor, sizes: list[float]) -> Change:
    """Rows of the usual value made as large as each of ``sizes``, and turned round where it is negative."""
    size = _size(usual)

    def change(output: Tensor) -> Tensor:
        rows = torch.tensor(sizes, dtype=torch.float64, device=usual.device).view(-1, *[1] * (usual.ndim - 1))
        return (usual.double() / size * rows).to(output.dtype)

    return change


def _some_tripled(usual: Tensor, which: int) -> Change:
    """Three rows, of which row ``1 + which`` has every fourth output, from ``which`` on, three times as large."""

    def change(output: Tensor) -> Tensor:
        rows = usual.repeat(3, *[1] * (usual.ndim - 1))
        rows[1 + which, ..., which::_PERIOD] *= 3
        return rows.to(output.dtype)

    return change


def _is_normed(rows: Tensor) -> bool:
    """Whether the rows are y, y, −y and something else: what a norm gives of a·x, 2a·x and −a·x. Masks do not count."""
    if not rows.is_floating_point():
        return False
    once, twice, minus, never = rows[:4].double()
    open_ = (once.abs() < 1e9) & (minus.abs() < 1e9)
    once, twice, minus, never = (part[open_] for part in (once, twice, minus, never))
    size = once.norm()
    alike = (twice - once).norm() <= _ALIKE * size and (minus + once).norm() <= _ALIKE * size
    return bool(size > 0) and bool(alike) and bool((never - once).norm() > _ALIKE * size)


def _places(model: HookedModel) -> dict[str, nn.Module]:
    """Every hook point of every block by name, and what goes in and out of each matrix, as ``"…:in"``, ``"…:out"``."""
    points: dict[str, Any] = model.hook_dict
    inside: dict[str, nn.Module] = {}
    known: set[int] = set()
    for name, point in sorted(points.items(), key=lambda item: _rank(item[0])):
        if name.startswith("blocks.") and id(point) not in known:
            known.add(id(point))
            inside[name] = point
    for layer in range(int(model.cfg.n_layers)):
        for component in COMPONENTS:
            where = f"blocks.{layer}.{sublayer_of(component)}"
            for way in ("in", "out"):
                place = _matrix_place(model, points, layer, component, way)
                if place is not None:
                    inside[f"{where}.{component}:{way}"] = place
    return inside


def _rank(name: str) -> int:
    """Of the names of one hook point the one to know it by: a component's own, that the plain model can find too."""
    return 0 if "hook_resid_p" in name else 1 if name.endswith(".hook_out") else 2


def part_name(points: Mapping[str, Any], layer: int, component: Component) -> str:
    """What a bridge calls a matrix: by its own name but in dense layers among mixtures, where ``gate`` is a router."""
    dense = f"dense_{component}"
    return dense if f"blocks.{layer}.mlp.{dense}.hook_in" in points else component


def _matrix_place(
    model: HookedModel, points: Mapping[str, Any], layer: int, component: Component, way: str
) -> nn.Module | None:
    where = f"blocks.{layer}.{sublayer_of(component)}"
    if sublayer_of(component) == "mlp" and mixture_at(model, layer) is not None:
        # Of a mixture it is asked alone whether a norm behind it cancels what it writes.
        return points.get(f"{where}.hook_out") if (component, way) == ("out", "out") else None
    if is_bridge(model):
        return points.get(f"{where}.{part_name(points, layer, component)}.hook_{way}")
    if way == "out" and component in ("o", "out"):
        module: nn.Module | None = getattr(model.blocks[layer], sublayer_of(component), None)
        return module
    before = "hook_pre_linear" if model.cfg.gated_mlp else "hook_pre"
    names = {"q": "hook_q", "k": "hook_k", "v": "hook_v", "gate": "hook_pre", "in": before}
    reads = {"o": "hook_z", "out": "hook_post"}
    name = (names if way == "out" else reads).get(component)
    return None if name is None else points.get(f"{where}.{name}")
