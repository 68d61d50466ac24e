"""Holding a partly frozen tensor in two pieces, only one of which is a parameter, without the model noticing.

The module that owns the tensor changes its class for a subclass of it. Who reads the attribute gets the whole tensor;
a linear layer computes the weight gradient for the trainable piece alone; a state dict has the original name, shape
and place, and loading one fills the trainable piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safecircuits.training.along import Along
from safecircuits.training.sliced_linear import PutTogether, sliced_linear
from safecircuits.training.watched import Watch

Originals = dict[str, nn.Parameter | None]
"""What a module's own parameters were, by leaf name and in their order."""


class Slice(nn.Module):
    """One tensor in two pieces, ``along`` its slices: ``part`` trains, ``rest`` is frozen and no parameter or buffer.

    Buffers are broadcast, averaged or cast by wrappers; what is frozen is left alone by all of them.
    """

    def __init__(self, original: Float[Tensor, "..."], along: Along, index: Int[Tensor, " trainable"]) -> None:
        super().__init__()
        stays = torch.ones(along.n_slices, dtype=torch.bool).index_fill(0, index.cpu(), False).nonzero().flatten()
        self.along, self.shape = along, original.shape
        self.index = index.to(original.device)
        self.order = torch.cat([index.cpu(), stays]).argsort().to(original.device)
        self.part = nn.Parameter(along.select(original.detach(), self.index))
        self.rest = along.select(original.detach(), stays.to(original.device))
        self.watch = Watch()
        self.stands_for = id(original)

    def trainable(self, whole: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Of other values of the whole tensor, those of the piece that trains."""
        return self.along.select(whole, self.index.to(whole.device))

    def forward(self) -> Float[Tensor, "..."]:
        """The whole tensor, with a gradient to ``part``."""
        whole = PutTogether.apply(self.part, self.rest, self.order, self.index, self.along)  # type: ignore[no-untyped-call]
        return cast(Tensor, whole)

    def value(self) -> Float[Tensor, "..."]:
        """The whole tensor without a gradient; of a sharded part, after gathering it from all processes."""
        part = self.part.detach()
        if hasattr(part, "full_tensor"):
            part = part.full_tensor()
        return self.along.together(part, self.rest, self.order)

    def linear(
        self, x: Float[Tensor, "... d_in"], bias: Tensor | None, input_first: bool
    ) -> Float[Tensor, "... d_out"]:
        """``x`` through the whole tensor as the weight of a linear map."""
        return sliced_linear(x, self.part, self.rest, bias, self.order, self.index, self.along, input_first)

    def load(self, whole: Float[Tensor, "..."]) -> str | None:
        """Take the trainable piece from ``whole``, or say why not."""
        if whole.shape != self.shape:
            return f"the shape is {tuple(whole.shape)} there and {tuple(self.shape)} here"
        whole = whole.detach().to(self.rest.device, self.rest.dtype)
        stays = self.order.argsort()[len(self.index) :]
        if not torch.equal(self.along.select(whole, stays), self.rest):
            return "its frozen entries are not those of this model"
        with torch.no_grad():
            self.part.copy_(self.along.select(whole, self.index))
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Slice:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.rest, self.index, self.order = fn(self.rest), fn(self.index), fn(self.order)
        return self

    # The owner saves and loads this tensor under its own name.
    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None: ...
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None: ...


def hold_apart(module: nn.Module, pieces: Mapping[str, Slice]) -> None:
    """Put ``pieces`` in the place of the parameters of ``module`` of the same names."""
    kind = type(module)
    body: dict[str, Any] = {"_original_leaves": tuple(module._parameters), "_sliced": tuple(pieces)}
    for leaf, piece in pieces.items():
        del module._parameters[leaf]
        module.add_module(_child(leaf), piece)
        body[leaf] = property(_reader(_child(leaf)))
    if "weight" in pieces and (input_first := _is_input_first(kind)) is not None:
        body["forward"] = _linear_forward(input_first)
    body["_save_to_state_dict"], body["_load_from_state_dict"] = _saver(kind), _loader(kind)
    module.__class__ = type(kind.__name__, (kind,), body)


def put_back(module: nn.Module, kind: type[nn.Module], originals: Originals) -> None:
    """Undo ``hold_apart``: the class and the parameters that ``module`` had, in their order."""
    for leaf in [leaf for leaf in originals if isinstance(module._modules.get(_child(leaf)), Slice)]:
        del module._modules[_child(leaf)]
    module.__class__ = kind
    module._parameters.clear()
    module._parameters.update(originals)


def _child(leaf: str) -> str:
    return f"{leaf}_slice"


def _reader(child: str) -> Callable[[nn.Module], Any]:
    def read(module: Any) -> Any:
        piece = module._modules[child]
        return piece.watch.hand_out(piece())

    return read


def _is_input_first(kind: type[nn.Module]) -> bool | None:
    """The layout of a linear layer's weight; None for a module that does anything else with it."""
    from transformers.pytorch_utils import Conv1D

    if kind.forward is nn.Linear.forward:
        return False
    return True if kind.forward is Conv1D.forward else None


def _linear_forward(input_first: bool) -> Callable[[Any, Tensor], Tensor]:
    def forward(module: Any, x: Tensor) -> Tensor:
        out: Tensor = module.weight_slice.linear(x, module.bias, input_first)
        return out

    return forward


def _saver(kind: type[nn.Module]) -> Callable[..., None]:
    def save(module: Any, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        kind._save_to_state_dict(module, destination, prefix, keep_vars)
        for leaf in module._sliced:
            piece = module._modules[_child(leaf)]
            destination[prefix + leaf] = piece() if keep_vars else piece.value()
        place = {prefix + leaf: i for i, leaf in enumerate(module._original_leaves)}
        mine = [key for key in destination if key.startswith(prefix)]
        for key in sorted(mine, key=lambda key: place.get(key, len(place))):  # in the order they always had
            destination[key] = destination.pop(key)

    return save


def _loader(kind: type[nn.Module]) -> Callable[..., None]:
    def load(
        module: Any,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {prefix + leaf: module._modules[_child(leaf)] for leaf in module._sliced}
        other = {key: value for key, value in state_dict.items() if key not in own}
        kind._load_from_state_dict(
            module, other, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for key, piece in own.items():
            if key not in state_dict:
                missing_keys.extend([key] if strict else [])
            elif problem := piece.load(state_dict[key]):
                error_msgs.append(f"{key} cannot be loaded inside frozen(...): {problem}.")

    return load
