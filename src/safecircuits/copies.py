"""Copies of a bridge (``copy.deepcopy``) compute with weights of their own.

A bridge may give a module another forward, a function that holds the module itself (Falcon's linear layers). A copy
keeps that function as it is, and with it the weights of the model that it was copied from. A method is copied along
with the module that it belongs to.
"""

from __future__ import annotations

from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


def let_copies_be_apart(bridge: nn.Module) -> None:
    """Turn every forward that is a function over its own module into a method of it."""
    for module in bridge.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, FunctionType) and any(_holds(cell, module) for cell in forward.__closure__ or ()):
            module.__dict__["forward"] = MethodType(_over_its_own(forward, module), module)


def _over_its_own(forward: FunctionType, module: nn.Module) -> FunctionType:
    """``forward`` as a function of the module that it was made over."""
    code, known, name, defaults = forward.__code__, forward.__globals__, forward.__name__, forward.__defaults__
    cells = forward.__closure__ or ()
    own = [_holds(cell, module) for cell in cells]

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        closure = tuple(CellType(self) if mine else cell for cell, mine in zip(cells, own, strict=True))
        return FunctionType(code, known, name, defaults, closure)(*args, **kwargs)

    return call  # type: ignore[return-value]


def _holds(cell: CellType, module: nn.Module) -> bool:
    try:
        return cell.cell_contents is module
    except ValueError:  # an empty cell
        return False
