"""Quantised weights: which maps hold them, and the matrix that such a map applies.

Libraries pack weights in ways of their own (bytes with scales, other shapes, tensors that only look like floats), and
some pack them anew while they run. What they all do is multiply: fed the identity, a map gives the very matrix that it
applies, rounding included, whoever packed it. So a packed weight is read by running the map, and never written.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safecircuits.model.quantised import method_of

_ROWS = 1024
"""Rows of the identity that a map is fed at once."""

_READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CLOSE = 0.05
"""How far a packed map may be from its own matrix on one row, as a share: those that round what enters, too."""


def packing_of(model: Any) -> str | None:
    """How a model's weights are packed, as its configuration or its modules say; None where they are plain numbers.

    A note in the configuration alone does not count: it stays where a loader has unpacked the weights.
    """
    inner = getattr(model, "original_model", model)
    quantizer = getattr(inner, "hf_quantizer", None)
    noted = _noted(getattr(inner, "config", None)) or _noted(quantizer)
    found = next(packed_maps(inner), None)
    if found is not None:
        return noted or type(found[1]).__module__.partition(".")[0]
    # A quantizer that unpacks takes its own mark away; GGUF's leaves it.
    return noted if quantizer is not None and noted != "gguf" else None


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a model holds: parameters, buffers, and what packed maps keep beside them (codes, scales)."""
    for _, tensor in named_tensors(model):
        yield tensor


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The same with names, each as often as it is held."""
    for name, module in model.named_modules():
        held: dict[str, Any] = {**module._parameters, **module._buffers}
        if is_packed(module):
            held |= {key: value for key, value in vars(module).items() if not key.startswith("_")}
        for key, value in held.items():
            yield from _tensors_in(f"{name}.{key}", value, depth=4 if is_packed(module) else 0)


def _tensors_in(name: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    if depth and hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        for key, inside in vars(value).items():
            yield from _tensors_in(f"{name}.{key}", inside, depth - 1)


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that one is made of: itself, or what a library's own kind of tensor holds."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts_of(getattr(tensor, name))]


@torch.no_grad()
def settle(model: Any) -> None:
    """Run every packed map once: some move what they hold at the first call, which then is not where a copy looks."""
    dtype = next(iter(model.parameters())).dtype
    for _, module in packed_maps(model):
        sizes = map_sizes(module)
        assert sizes is not None
        module.forward(torch.zeros(1, sizes[0], dtype=dtype, device=_device_of(module)))


def _device_of(module: nn.Module) -> torch.device:
    return next(t.device for t in held_tensors(module))


def require_gradients(model: Any) -> None:
    """Raise a ValueError if a packed map passes on another gradient than its product has, or none.

    Kernels for inference have no backward pass, and a library may take one for the other without a word.
    """
    inner = getattr(model, "original_model", model)
    dtype, seen = next(iter(inner.parameters())).dtype, set()
    for name, module in packed_maps(inner):
        sizes = map_sizes(module)
        assert sizes is not None
        if (kind := (type(module), sizes)) in seen:
            continue
        seen.add(kind)
        x = torch.linspace(-1, 1, sizes[0], dtype=dtype, device=_device_of(module))[None]
        with torch.inference_mode(False), torch.enable_grad():
            given = x.clone().requires_grad_()
            try:
                (slope,) = torch.autograd.grad(module.forward(given * 1).double().sum(), given)
                got = float((slope.double() * x.double()).sum())
            except (RuntimeError, TypeError, NotImplementedError) as error:
                got, reason = math.nan, f": {str(error).splitlines()[0]}"
            else:
                reason = ""
        with torch.no_grad():
            outputs = (module.forward(x) - module.forward(-x)).double() / 2
        if not abs(got - float(outputs.sum())) <= _CLOSE * float(outputs.norm()) * sizes[1] ** 0.5 + 1e-6:
            plain = name.replace("._original_component", "")
            raise ValueError(
                f"the quantised {type(module).__name__} {plain} passes on no gradient, or another than that "
                f"of its product, on this device{reason}. Use scores that need none (such as method='wifv'), another "
                "device, or the unquantised model"
            )


def memory_of(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins and how many bytes it has."""
    storages = [part.untyped_storage() for part in parts_of(tensor)]
    return storages[0].data_ptr(), sum(storage.nbytes() for storage in storages)


WRITING = (
    "needs the weights themselves: packed ones have no entries that a mask could name or a step could change, and what "
    "is trained or saved of them is another model. Quantised models are for reading alone; load the unquantised "
    "checkpoint with dtype=torch.bfloat16, over several devices with device_map='auto' if it is too large for one"
)


def require_unpacked(model: Any, purpose: str) -> None:
    """Raise a ValueError if the model's weights are packed, and ``purpose`` needs entries to name and to write."""
    method = packing_of(model)
    if method is not None:
        what = type(getattr(model, "original_model", model)).__name__
        raise ValueError(f"this {what} is quantised ({method}), and {purpose} {WRITING}")


def _noted(holder: Any) -> str | None:
    return method_of(getattr(holder, "quantization_config", None))


def packed_maps(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every linear map whose weight is not there as a matrix of numbers."""
    for name, module in model.named_modules():
        if is_packed(module):
            yield name, module


def is_packed(module: Any) -> bool:
    """Whether a linear map, by what it says of itself, holds its weight otherwise than as a matrix of numbers."""
    sizes = map_sizes(module)
    if sizes is None:
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return True
    plain = type(weight) in (Tensor, nn.Parameter) or getattr(weight, "plain_numbers", False)
    if not plain and not hasattr(weight, "device_mesh"):
        return True
    if weight.dtype not in _READABLE:
        return True
    return not weight.is_meta and sorted(weight.shape) != sorted(sizes) and not hasattr(weight, "device_mesh")


def map_sizes(module: Any) -> tuple[int, int] | None:
    """(in, out) of a linear map; None of what is none, or only wraps one."""
    if not isinstance(module, nn.Module) or hasattr(module, "original_component") or hasattr(module, "base_layer"):
        return None
    held = vars(module)
    for names in (("in_features", "out_features"), ("infeatures", "outfeatures"), ("nx", "nf")):
        if all(isinstance(held.get(name), int) for name in names):
            return held[names[0]], held[names[1]]
    return None


@torch.no_grad()
def applied_matrix(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "in out"]:
    """The matrix that a packed map multiplies with, in the precision in which it does.

    Half the difference of what it makes of a unit and of minus that unit, which leaves a bias out.

    Raises:
        ValueError: if what it computes is not a product with one matrix.
    """
    sizes = map_sizes(module)
    assert sizes is not None
    plain = _without_bias(module)
    rows = []
    for start in range(0, sizes[0], _ROWS):
        n = min(_ROWS, sizes[0] - start)
        units = torch.zeros(n, sizes[0], dtype=dtype, device=device)
        units[range(n), range(start, start + n)] = 1
        rows.append((plain(units) - plain(-units)) / 2)
    matrix = torch.cat(rows)
    probe = torch.linspace(-1, 1, sizes[0], dtype=dtype, device=device)[None]
    got, want = ((plain(probe) - plain(-probe)) / 2).double(), probe.double() @ matrix.double()
    if not (got - want).norm() <= _CLOSE * want.norm() + 1e-6:
        raise ValueError(
            f"what this {type(module).__name__} computes is not the product with one matrix (off by "
            f"{float((got - want).norm() / want.norm()):.0%}), so its weights cannot be read; use the unquantised model"
        )
    return matrix


def _without_bias(module: nn.Module) -> Any:
    """Its forward, without hooks and bias: in 16 bits a large bias would round the weights away."""
    bare = copy.copy(module)
    for kind in ("_parameters", "_buffers"):
        bare.__dict__[kind] = {name: None if name == "bias" else t for name, t in module.__dict__[kind].items()}
    if hasattr(module, "_hf_hook"):
        bare.__dict__.pop("forward", None)  # Accelerate's, which runs the module itself
    return bare.forward
