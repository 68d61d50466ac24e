"""One way to read a number that a caller passes: an index, a count, a share. What is none is refused by its value.

Python would take ``True`` for 1, ``"12"`` for two indices and ``int(1.7)`` for 1; a NaN passes every comparison that is
written as a refusal. Here a whole number is what can stand as an index (Python's, numpy's and torch's scalars), and a
number is real and finite. Neither is a boolean.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LEAST = {
    **dict.fromkeys(("seed", "seeds", "controls", "spare", "num_fewshot", "warmup_steps", "prefilled"), 0),
    **dict.fromkeys(("neurons", "kv_heads", "utility_rank", "kl_tokens"), 0),
    **dict.fromkeys(("layer", "step"), None),  # from the end, too; who takes them knows the range
    "each of steps": 0,  # moments, where steps alone are how many
    "each of layers": 0,
}
"""The smallest value of whole numbers by their parameter's name, where it is not 1."""


READ_AS: dict[str, Callable[[Any, str], Any]] = {}
"""How an argument is read that a signature says is of a class, by the class's name; rooms above add theirs."""

SHARES = {"scu", "ucu", "ru", "fall", "kept", "trained", "free_share", "max_utility_loss"}
"""Parameters that are parts of a whole; of other numbers a function says itself where they lie."""


def whole(value: Any, name: str, least: int | None = None) -> int:
    """``value`` as Python's whole number.

    Raises:
        ValueError: if it is none (a boolean, a fraction, text), or below ``least``.
    """
    try:
        if _is_boolean(value) or _axes(value):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {_shown(value)}") from None
    if least is not None and found < least:
        raise ValueError(f"{name} must be at least {least}, not {found}")
    return found


def number(value: Any, name: str) -> float:
    """``value`` as Python's number; a ValueError if it is none, or not finite."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = value
    else:
        try:
            if _is_boolean(value) or isinstance(value, str | bytes) or _axes(value):
                raise TypeError
            found = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be a number, not {_shown(value)}") from None
    if not -math.inf < found < math.inf:
        raise ValueError(f"{name} must be a finite number, not {found}")
    return found


def share(value: Any, name: str) -> float:
    """A number from 0 to 1; a ValueError for any other."""
    found = number(value, name)
    if not 0 <= found <= 1:
        raise ValueError(f"{name} is a share between 0 and 1, not {found}")
    return found


def truth(value: Any, name: str) -> bool:
    """``value`` as Python's boolean; a ValueError for any other, such as ``"no"``, which Python takes for True."""
    if not _is_boolean(value) or _axes(value):
        raise ValueError(f"{name} must be True or False, not {_shown(value)}")
    return bool(value)


def indices(values: Any, name: str, least: int | None = 0) -> list[int]:
    """Whole numbers one by one, from a list, a set, an array or a tensor.

    Raises:
        ValueError: if one is none. An array of booleans is a mask of what is chosen and no list of indices: pass
            ``mask.nonzero()`` of it.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list of whole numbers, not {_shown(values)}")
    if hasattr(values, "ndim") and _axes(values) != 1:
        raise ValueError(f"{name} must be one list of whole numbers, not an array of {_axes(values)} axes")
    listed = list(values.tolist() if hasattr(values, "tolist") else values)
    if all(type(value) is int for value in listed) and (least is None or min(listed, default=least) >= least):
        return listed  # the usual case, and there may be hundreds of thousands
    if any(map(_is_boolean, listed)):
        raise ValueError(f"{name} must be whole numbers, not booleans: where a mask is True is mask.nonzero()")
    return [whole(value, f"each of {name}", least) for value in listed]


def numbers(values: Any, name: str) -> list[float]:
    """Numbers one by one, from a list, an array or a tensor; a ValueError if one is none."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list of numbers, not {_shown(values)}")
    return [number(value, f"each of {name}") for value in values]


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Read the numbers among the arguments before ``function`` starts, as its signature and ``LEAST`` say they are.

    Parameters of type ``bool``, ``int``, ``float`` and sequences of these are read, and those of a class by
    ``READ_AS``; None stays where it is allowed.
    """
    signature = inspect.signature(function)
    readers, classes = readers_of(signature), _classes_of(signature)

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # Python says what is missing or too much
            return function(*args, **kwargs)
        for name, read in readers.items():
            if name in bound.arguments:
                bound.arguments[name] = read(bound.arguments[name])
        for name, kind in classes.items():
            if (given := bound.arguments.get(name)) is not None and kind in READ_AS:
                bound.arguments[name] = READ_AS[kind](given, name)
        return function(*bound.args, **bound.kwargs)

    return inside


def readers_of(signature: inspect.Signature) -> dict[str, Callable[[Any], Any]]:
    """How each parameter that is a number, or several, is read."""
    kinds: dict[str, Callable[[str, int | None], Callable[[Any], Any]]] = {
        "int": lambda name, least: lambda value: whole(value, name, least),
        "float": lambda name, _: lambda value: (share if name in SHARES else number)(value, name),
        "Sequence[int]": lambda name, least: lambda value: tuple(indices(value, name, least)),
        "bool": lambda name, _: lambda value: truth(value, name),
        "Sequence[float]": lambda name, _: lambda value: tuple(numbers(value, name)),
    }
    found = {}
    for name, parameter in signature.parameters.items():
        kind = str(parameter.annotation)
        if (plain := kind.removesuffix(" | None")) in kinds:
            least = LEAST.get(name, 1)
            read = kinds[plain](name, LEAST.get(f"each of {name}", least) if plain == "Sequence[int]" else least)
            found[name] = _or_none(read) if kind != plain else read
    return found


def _classes_of(signature: inspect.Signature) -> dict[str, str]:
    """The parameters that are of one class alone, or None, with its name."""
    kinds = {name: str(one.annotation).removesuffix(" | None") for name, one in signature.parameters.items()}
    return {name: kind for name, kind in kinds.items() if kind.isidentifier()}


def read_fields(settings: Any) -> None:
    """The same for the fields of a frozen dataclass, from its ``__post_init__``."""
    for name, read in readers_of(inspect.signature(type(settings))).items():
        object.__setattr__(settings, name, read(getattr(settings, name)))


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _axes(value: Any) -> int:
    """Of an array or tensor; 0 for what is none."""
    return int(getattr(value, "ndim", False))


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
