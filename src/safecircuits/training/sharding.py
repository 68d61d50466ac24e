"""FSDP2 for the length of a phase: every process keeps its share of the weights, gradients and optimizer state.

PyTorch has no way back from ``fully_shard``: a sharded module has other parameters, other hooks and another class.
Here all of these are put back at the end, and in between where callbacks want the whole model. Of a partly frozen
tensor the trainable slice is sharded like any parameter; its frozen rest is held by every process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from safecircuits.training.slices import Slice

_HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks")


class _ModuleState:
    """What sharding changes about a module: class, parameters, buffers' memory, hooks, attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind = module, type(module)
        self.parameters = dict(module._parameters)
        self.buffers = {name: b.data for name, b in module._buffers.items() if b is not None}
        self.hooks = {kind: dict(getattr(module, kind)) for kind in _HOOKS}
        self.attributes = set(module.__dict__)
        self.slice = (module.rest, module.index, module.order) if isinstance(module, Slice) else None

    def replace(self, other: _ModuleState) -> None:
        """Put the module into this state, out of the other; what others have hooked since stays."""
        module = self.module
        module.__class__ = self.kind
        module._parameters.update(self.parameters)
        for name, data in self.buffers.items():
            cast(Tensor, module._buffers[name]).data = data
        for kind in _HOOKS:
            present = getattr(module, kind)
            # In this order: FSDP's own hooks come first before a forward pass and last after it.
            kept = {key: hook for key, hook in present.items() if key not in other.hooks[kind]}
            present.clear()
            present.update(self.hooks[kind] | kept)
        if self.slice is not None:
            assert isinstance(module, Slice)
            module.rest, module.index, module.order = self.slice


class Sharded:
    """``root`` with its ``layers``, each a unit of communication, sharded over all processes until ``close``.

    Attributes:
        trained: the sharded parameters in the place of the given ones, by the same names.
    """

    def __init__(
        self, root: nn.Module, layers: list[nn.Module], trained: Mapping[str, nn.Parameter], device: str, **policy: Any
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.root = root
        self._plain = [_ModuleState(module) for module in root.modules()]
        self._originals = {id(p): p for state in self._plain for p in state.parameters.values() if p is not None}
        memory = {key: p.data for key, p in self._originals.items()}
        mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
        for module in [*layers, root]:
            fully_shard(module, mesh=mesh, **policy)
        # FSDP has moved the originals to its device before it cut them up: they go back to where they were.
        for key, p in self._originals.items():
            p.data = memory[key]
        here = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
        for module in root.modules():
            if isinstance(module, Slice):
                module.rest, module.index, module.order = (
                    t.to(here) for t in (module.rest, module.index, module.order)
                )
        self._shards = [_ModuleState(module) for module in root.modules()]
        sharded = {
            id(original): shard
            for plain, state in zip(self._plain, self._shards, strict=True)
            for original, shard in zip(plain.parameters.values(), state.parameters.values(), strict=True)
            if original is not None and shard is not None
        }
        self.trained = {name: sharded[id(p)] for name, p in trained.items()}
        self._pairs = [(p, sharded[id(p)]) for p in trained.values()]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The model as it was before, with the weights of the moment, on every process."""
        self.gather()
        self._put(self._plain, self._shards)
        try:
            yield
        finally:
            self._put(self._shards, self._plain)

    @torch.no_grad()
    def gather(self) -> None:
        """Bring the original parameters up to date."""
        for module in self.root.modules():
            if hasattr(module, "reshard"):
                module.reshard()  # type: ignore[operator]
        for original, shard in self._pairs:
            original.copy_(whole(shard))

    def close(self) -> None:
        """Make the modules what they were. The weights are those of the last ``gather``."""
        from torch.distributed._composable_state import _module_state_mapping

        self._put(self._plain, self._shards)
        for state in self._plain:
            _module_state_mapping.pop(state.module, None)
            for name in set(state.module.__dict__) - state.attributes:
                del state.module.__dict__[name]

    @staticmethod
    def _put(states: list[_ModuleState], others: list[_ModuleState]) -> None:
        for state, other in zip(states, others, strict=True):
            state.replace(other)


def whole(value: Any) -> Any:
    """A sharded tensor gathered from all processes; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """``value``, the same on every process, sharded as ``parameter`` is."""
    if not hasattr(parameter, "device_mesh") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    spread: Tensor = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    return spread
