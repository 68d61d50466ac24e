"""Mixtures of experts: which layers are some, and where in them the experts, the router and the shared expert lie.

Recent transformers keeps the experts of a layer in two fused tensors, ``gate_up_proj [expert, 2 neuron, d_model]`` and
``down_proj [expert, d_model, neuron]``, some the other way round (gpt-oss), and says which beside them. What is found
by these words is tried out before it is believed; what does not fit is no mixture that units can be named in.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from safecircuits.base.arguments import whole
from safecircuits.base.vocabulary import Site
from safecircuits.model.packed import map_sizes

NEURONS, INDEX, SHARED = "hook_experts", "hook_expert_index", "hook_shared"
"""Hook points of a mixture ``blocks.i.mlp``: what enters an expert's output projection ``[batch pos top_k d_expert]``,
which experts those are ``[batch pos top_k]``, and the same of the shared expert ``[batch pos d_shared]``."""
MAPS = {"gate": "hook_expert_gate", "in": "hook_expert_in", "out": NEURONS}
"""What comes out of an expert's gate and input maps, with their biases, and what enters its output projection."""
SHARED_MAPS = {"gate": "hook_shared_gate", "in": "hook_shared_in", "out": SHARED}
"""What enters each of the three maps of the shared expert."""


@dataclass(frozen=True)
class MixtureShape:
    """How many experts the mixture layers of a model have, and how wide they are.

    The neurons of all experts of a layer have one number each, expert after expert: ``unit`` and ``expert_and_neuron``
    go from one name to the other.

    Examples:
        >>> mixture = sc.model.MixtureShape(n_experts=8, d_expert=512, d_shared=0, layers=(0, 1))
        >>> mixture.unit(expert=2, neuron=7)
        1031
        >>> mixture.expert_and_neuron(1031)
        (2, 7)
    """

    n_experts: int
    d_expert: int
    d_shared: int
    """Neurons of what every token goes through beside its experts; 0 where there is no such expert."""
    layers: tuple[int, ...]
    """The layers that are mixtures."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # a list, from JSON

    def unit(self, expert: int, neuron: int) -> int:
        """The number of an expert's neuron in its layer; a ValueError for one that is not there."""
        expert, neuron = whole(expert, "an expert"), whole(neuron, "a neuron of an expert")
        if not (0 <= expert < self.n_experts and 0 <= neuron < self.d_expert):
            raise ValueError(
                f"neuron {neuron} of expert {expert} does not exist: experts are 0 to {self.n_experts - 1}, their "
                f"neurons 0 to {self.d_expert - 1}"
            )
        return expert * self.d_expert + neuron

    def expert_and_neuron(self, unit: int) -> tuple[int, int]:
        """The expert and its neuron that have this number in their layer; a ValueError for one that is not there."""
        unit = whole(unit, "an expert's neuron")
        if not 0 <= unit < self.n_experts * self.d_expert:
            raise ValueError(f"expert unit {unit} does not exist: there are 0 to {self.n_experts * self.d_expert - 1}")
        return divmod(unit, self.d_expert)

    def n_units(self, site: Site) -> int:
        """Units of ``"expert"``, ``"router"`` or ``"shared"`` in one mixture layer."""
        return {
            "expert": self.n_experts * self.d_expert,
            "router": self.n_experts,
            "shared": self.d_shared,
        }[site]


@dataclass(frozen=True, eq=False)
class Mixture:
    """The parts of one layer, modules of the Hugging Face model."""

    block: nn.Module
    experts: Any
    router: nn.Module
    shared: tuple[nn.Linear, nn.Linear, nn.Linear] | None
    """Gate, input and output maps of the shared expert."""
    shared_gate: nn.Module | None
    """What multiplies all that the shared expert writes."""

    @property
    def n_experts(self) -> int:
        return int(self.experts.down_proj.shape[0])

    @property
    def d_expert(self) -> int:
        return int(self.experts.down_proj.shape[1 if self.experts.is_transposed else 2])

    @property
    def d_shared(self) -> int:
        sizes = None if self.shared is None else map_sizes(self.shared[2])  # of a packed map the weight has none
        return 0 if sizes is None else sizes[0]

    def down(self) -> Tensor:
        """Outgoing weights ``[expert, neuron, d_model]``, a view."""
        weight: Tensor = self.experts.down_proj.detach()
        return weight if self.experts.is_transposed else weight.transpose(1, 2)

    def parameters(self, site: Site) -> list[nn.Parameter]:
        """All parameters of the experts, of the router, or of the shared expert with what multiplies it."""
        if site == "expert":
            return list(self.experts.parameters())
        if site == "router":
            return list(self.router.parameters())
        parts = [*(self.shared or ()), *((self.shared_gate,) if self.shared_gate is not None else ())]
        return [parameter for part in parts for parameter in part.parameters()]


def look(sublayer: Any) -> tuple[Mixture | None, str]:
    """The mixture that a layer's MLP is, or None and why units cannot be named in it (``""``: it is no mixture)."""
    if sublayer is None:
        return None, ""
    if isinstance(getattr(sublayer, "experts", None), nn.ModuleList):
        return None, (
            "a HookedTransformer keeps each expert in modules of its own, past which tokens go in no order that hooks "
            "know: load_model(..., backend='bridge')"
        )
    block = _unwrapped(sublayer)
    fused = [m for m in block.modules() if any(p.ndim == 3 for p in m.parameters(recurse=False))]
    if not fused:
        return None, ""
    if len(fused) > 1 or (problem := _not_as_declared(fused[0])):
        names = " and ".join(sorted(type(m).__name__ for m in fused))
        return (
            None,
            f"its {names} are not kept as transformers' experts interface has it{'' if len(fused) > 1 else problem}",
        )
    experts: Any = fused[0]
    routers, shared, gates = [], [], []
    for child in map(_unwrapped, block.children()):
        if child is experts or not any(True for _ in child.parameters()):
            continue
        matrices = [tuple(p.shape) for p in child.parameters() if p.ndim > 1]
        if (maps := _gated_maps(child)) is not None:
            shared.append(maps)
        elif hasattr(child, "top_k") and matrices == [(len(experts.down_proj), _d_model(experts))]:
            routers.append(child)
        elif matrices == [(1, _d_model(experts))]:
            gates.append(child)
        else:
            return None, f"it also computes with a {type(child).__name__}, which is no expert, router or shared expert"
    if len(routers) != 1 or len(shared) > 1 or len(gates) > 1 or (gates and not shared):
        return None, f"its {type(block).__name__} has {len(routers)} routers and {len(shared)} shared experts"
    loose = [name for name, _ in block.named_parameters(recurse=False)]
    if loose:
        return None, f"its {type(block).__name__} has a parameter {loose[0]!r} beside its parts"
    return Mixture(block, experts, routers[0], shared[0] if shared else None, gates[0] if gates else None), ""


def mixture_shape(found: Iterable[tuple[Mixture | None, str]]) -> MixtureShape | None:
    """The shape of a model's mixtures, given layer by layer; None where there is none, or they are not alike."""
    by_layer = {layer: mixture for layer, (mixture, _) in enumerate(found) if mixture is not None}
    shapes = {(m.n_experts, m.d_expert, m.d_shared) for m in by_layer.values()}
    return MixtureShape(*shapes.pop(), tuple(by_layer)) if len(shapes) == 1 else None


def rows_of(experts: Any, neurons: Int[Tensor, " neuron"]) -> Int[Tensor, " two_neuron"]:
    """Which outputs of ``gate_up_proj`` make these neurons of an expert."""
    if experts.is_concatenated:
        return torch.cat([neurons, neurons + experts.gate_up_proj.shape[2 if experts.is_transposed else 1] // 2])
    return torch.cat([2 * neurons, 2 * neurons + 1])


def _unwrapped(module: nn.Module) -> nn.Module:
    while (inside := module._modules.get("_original_component")) is not None:
        module = inside
    return module


def _d_model(experts: Any) -> int:
    return int(experts.down_proj.shape[2 if experts.is_transposed else 1])


def _gated_maps(child: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear] | None:
    """Gate, input and output maps of a gated MLP, if that is what a module is."""
    parts = [child._modules.get(name) for name in ("gate_proj", "up_proj", "down_proj")]
    inside = [_unwrapped(part) for part in parts if part is not None]
    maps = [one for one in inside if isinstance(one, nn.Linear)]
    if len(maps) != 3:
        return None
    own = {id(p) for one in maps for p in one.parameters()}
    return (maps[0], maps[1], maps[2]) if all(id(p) in own for p in child.parameters()) else None


_TRIED: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def _not_as_declared(experts: Any) -> str:
    """Why these are not experts whose neurons are the ones that they say; ``""`` if they are."""
    if experts not in _TRIED:
        _TRIED[experts] = _problem(experts)
    return _TRIED[experts]


@torch.no_grad()
def _problem(experts: Any) -> str:
    said = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm", "_apply_gate")
    if not all(hasattr(experts, word) for word in said):
        return " (they do not say how)"
    if not experts.has_gate:
        return " with a gate"
    if getattr(experts, "_is_expert_parallel", False):
        return ": they are spread over several processes"
    names = {name for name, _ in experts.named_parameters(recurse=False)}
    biases = {"gate_up_proj_bias", "down_proj_bias"} if experts.has_bias else set()
    if names != {"gate_up_proj", "down_proj"} | biases:
        return f": they have the parameters {', '.join(sorted(names))}"
    # Every third neuron's two outputs of gate_up_proj are changed: no other neuron may move, and each of them must.
    width = experts.down_proj.shape[1 if experts.is_transposed else 2]
    some = torch.arange(0, width, 3)
    outputs = torch.linspace(0.2, 1, 2 * width).repeat(2, 1)
    outputs[1, rows_of(experts, some)] += 0.5
    plain, changed = type(experts)._apply_gate(experts, outputs)
    moved = (plain != changed).nonzero().flatten()
    return "" if len(plain) == width and torch.equal(moved, some) else ": their neurons are not where they say"
