"""Weights that lie elsewhere between passes: Accelerate's offload to the CPU or to a disk.

Accelerate brings the weights of each module when that runs. A bridge reads some of its modules' weights itself, and
splits others, so its blocks get one hook each in place of theirs, with everything in a block there while it runs.
Between passes a block's weights are on the meta device; what reads them does so inside ``present``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from safecircuits.model.packed import packing_of, require_unpacked


def is_offloaded(model: nn.Module) -> bool:
    """Whether some of a model's weights come only for the moment in which a module runs."""
    return any(True for module in model.modules() for _ in _offloading(module))


def _offloading(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        if getattr(one, "offload", False) and getattr(one, "weights_map", None) is not None:
            yield one


def require_in_place(model: Any, purpose: str) -> None:
    """Raise a ValueError unless the model's weights are plain numbers in memory, which ``purpose`` can write to."""
    require_unpacked(model, purpose)
    if any(p.is_meta for p in getattr(model, "original_model", model).parameters()):
        what = type(getattr(model, "original_model", model)).__name__
        raise ValueError(
            f"some weights of this {what} are offloaded to the CPU or to a disk, and {purpose} needs all of them in "
            "place. Offloaded models are for reading alone; take more or larger devices, a smaller dtype "
            "(torch.bfloat16), or device='cpu' for all of it"
        )


def require_all_of_packed(model: nn.Module) -> None:
    """Raise a ValueError for a quantised model of which a part is offloaded."""
    if is_offloaded(model) and (method := packing_of(model)) is not None:
        raise ValueError(
            f"this {type(model).__name__} is quantised ({method}) and partly offloaded, which is not read here: take a "
            "device that holds all of it"
        )


def runs_on(model: nn.Module) -> torch.device:
    """Where a model takes its input ids, whether or not its embedding is there just now."""
    device = next(iter(model.parameters())).device
    hooks = (hook for module in model.modules() for hook in _offloading(module))
    return device if device.type != "meta" else torch.device(next(hooks).execution_device or "cpu")


def maps_of(model: nn.Module) -> dict[int, Any]:
    """What a copy of an offloaded model shares with it, by identity: the maps that its weights come from."""
    return {id(hook.weights_map): hook.weights_map for module in model.modules() for hook in _offloading(module)}


def bring_back(copied: nn.Module) -> dict[int, torch.device]:
    """Give modules whose weights were offloaded these weights again, on the CPU, and take their hooks away.

    Weights on a disk are mapped from there where Accelerate maps them, and read where it reads them.

    Returns:
        By identity of each parameter that came back, where it is to be when it is needed.
    """
    from accelerate.hooks import remove_hook_from_module

    back: dict[int, torch.device] = {}
    if not is_offloaded(copied):
        return back
    ties: dict[int, nn.Parameter] = {}
    for module in copied.modules():
        for hook in list(_offloading(module)):
            where = torch.device(hook.execution_device if hook.execution_device is not None else "cpu")
            names = [name for name, p in module.named_parameters(recurse=hook.place_submodules) if p.is_meta]
            values = {name: hook.weights_map[name] for name in names}
            remove_hook_from_module(module)
            module.__dict__.pop("forward", None)
            for name, value in values.items():
                parameter = ties.setdefault(value.data_ptr(), nn.Parameter(value, requires_grad=False))
                owner, _, leaf = name.rpartition(".")
                module.get_submodule(owner)._parameters[leaf] = parameter
                back[id(parameter)] = where
    return back


def send_away(bridge: Any, back: Mapping[int, torch.device]) -> None:
    """Let the blocks of a bridge have what was brought back only while they run, and all else in its place for good."""
    if not back:
        return
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    memory = {p.untyped_storage().data_ptr(): back[id(p)] for p in bridge.parameters() if id(p) in back}
    inside: set[int] = set()
    for block in map(_layer_of, bridge.blocks):
        own = [p.untyped_storage().data_ptr() for p in block.parameters()]
        inside.update(own)
        where = next((memory[start] for start in own if start in memory), None)
        if where is not None:
            block.requires_grad_(False)
            add_hook_to_module(block, AlignDevicesHook(where, offload=True, place_submodules=True))
    for module in bridge.modules():
        for name, parameter in module._parameters.items():
            start = None if parameter is None or parameter.is_meta else parameter.untyped_storage().data_ptr()
            if parameter is not None and start in memory and start not in inside:
                parameter.data = parameter.data.to(memory[start])
                module._parameters[name] = parameter


@contextmanager
def present(model: Any, layers: Iterable[int] | None = None) -> Iterator[None]:
    """Inside the block the weights of these layers can be read, on the CPU; what is written to them is lost.

    Args:
        layers: all of them unless given.
    """
    from accelerate.utils import align_module_device

    blocks = [_layer_of(block) for block in getattr(model, "blocks", ())]
    with ExitStack() as stack:
        for layer in range(len(blocks)) if layers is None else layers:
            if any(True for _ in _offloading(blocks[layer])):
                stack.enter_context(align_module_device(blocks[layer], torch.device("cpu")))
        yield


def _layer_of(block: Any) -> nn.Module:
    """The decoder layer itself: a bridge's block passes on to it what is set on the block."""
    found: nn.Module = getattr(block, "original_component", block)
    return found
