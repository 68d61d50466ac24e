"""Copies of a bridge (``copy.deepcopy``) compute with weights of their own.

A bridge gives modules forwards and hooks that are functions over modules of its own: Falcon's linear layers, the input
of a norm that attention wants to see. A copy keeps such a function as it is, and with it the weights of the model that
it was copied from, or a reference that leads nowhere once that is gone. Here each becomes something that is copied
along with its modules.
"""

from __future__ import annotations

import copy
import weakref
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


def let_copies_be_apart(bridge: Any) -> None:
    """Have ``copy.deepcopy`` of the bridge make one of its own; some hooks it puts on when it first runs."""
    bridge.__dict__["__deepcopy__"] = MethodType(_copied, bridge)


def _copied(bridge: nn.Module, memo: dict[int, Any]) -> nn.Module:
    _replace_functions(bridge)
    made: nn.Module = object.__new__(type(bridge))
    memo[id(bridge)] = made
    for name, value in bridge.__dict__.items():
        made.__dict__[name] = copy.deepcopy(value, memo)
    return made


def _replace_functions(bridge: nn.Module) -> None:
    """Replace every forward and hook that is a function over modules of the bridge; it does what it did."""
    mine = {id(module) for module in bridge.modules()}
    for module in bridge.modules():
        forward = module.__dict__.get("forward")
        if _is_over(forward, mine):
            module.__dict__["forward"] = _OverModules(forward)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                if _is_over(hook, mine):
                    hooks[key] = _OverModules(hook)


class _OverModules:
    """A function with the modules that it is over; a copy is over the copies of these.

    It holds them weakly: they are parts of the model that it belongs to, which should go when nobody uses it any more.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.over: dict[int, Any] = {
            i: weakref.ref(m) for i, c in enumerate(function.__closure__ or ()) if (m := _module_in(c))
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        made = self.function
        cells = list(made.__closure__ or ())
        for i, module in self.over.items():
            cells[i] = CellType(module())
        return FunctionType(made.__code__, made.__globals__, made.__name__, made.__defaults__, tuple(cells))(
            *args, **kwargs
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _OverModules:
        copied = copy.copy(self)
        copied.over = {i: weakref.ref(copy.deepcopy(module(), memo)) for i, module in self.over.items()}
        return copied


def _is_over(function: Any, modules: set[int]) -> bool:
    cells = (function.__closure__ or ()) if isinstance(function, FunctionType) else ()
    return any(id(_module_in(cell)) in modules for cell in cells)


def _module_in(cell: CellType) -> nn.Module | None:
    """The module that a cell holds, itself or by a weak proxy."""
    try:
        content = cell.cell_contents
        if type(content) in weakref.ProxyTypes:
            content = content.modules.__self__  # a method knows the very object
    except (ValueError, ReferenceError, AttributeError):  # an empty cell, one that is gone, of something else
        return None
    return content if isinstance(content, nn.Module) else None
