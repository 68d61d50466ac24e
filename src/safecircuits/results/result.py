"""Results on disk: tensors as safetensors, everything else as JSON, in a folder that is complete or absent.

A result is a frozen dataclass of tensors, numbers, strings, tuples, mappings and other such dataclasses, which
files name by the short names in ``result_classes``. Nothing is pickled, and no module is imported because a file names
it: loading a folder from somebody else runs no code of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from safecircuits.base.files import is_partial, replacing_folder
from safecircuits.base.reading import read_json
from safecircuits.results.register import class_named, registered_name

FORMAT = "safecircuits-result"
VERSION = 2
_JSON, _TENSORS = "result.json", "tensors.safetensors"


class Result:
    """Adds ``save(folder)``, ``load(folder)``, ``equals(other)`` and a short ``repr`` to a frozen dataclass.

    Examples:
        >>> gap = sc.layer_gap(model, normal, malicious)
        >>> folder = gap.save("gap")
        >>> sc.LayerGap.load(folder).equals(gap)
        True
    """

    def __init_subclass__(cls) -> None:
        # Before the dataclass decorator runs, which leaves a class its own __repr__: that of every field would print
        # thousands of completions.
        if "__repr__" not in cls.__dict__:
            type.__setattr__(cls, "__repr__", Result.__repr__)

    def __repr__(self) -> str:
        shown = (f"{field.name}={_brief(getattr(self, field.name))}" for field in fields(cast(Any, self)))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __str__(self) -> str:
        verdict = getattr(self, "verdict", None)
        return verdict if isinstance(verdict, str) else repr(self)

    def _repr_html_(self) -> str:
        from safecircuits.results.notebook import html_card

        return html_card(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to ``folder``, replacing an earlier result there and nothing else.

        Raises:
            ValueError: if the folder holds something that is not a result, or is a file.
            TypeError: if the result, or a value in it, is of a class that a file has no name for.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        if folder.is_file():
            raise ValueError(f"{str(folder)!r} is a file; give the result a folder")
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if {name for name in there if not is_partial(name)} - {_JSON, _TENSORS}:
            raise ValueError(f"{str(folder)!r} holds other files; give the result a folder of its own")
        tensors: dict[str, Tensor] = {}
        document = {"format": FORMAT, "version": VERSION, "result": _encode(self, tensors)}
        with replacing_folder(folder, _JSON, lambda _: (_TENSORS,)) as partial:
            partial.mkdir()
            save_file(tensors, partial / _TENSORS)
            (partial / _JSON).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            ValueError: if the folder holds no result, one of another kind, of another version, or a damaged one.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            document = read_json(folder / _JSON)
            tensors = load_file(folder / _TENSORS)
            found = document.get("format"), document.get("version")
        except Exception as error:  # each library has its own for a missing or damaged file
            raise ValueError(f"{str(folder)!r} holds no readable result: {error}") from error
        if found != (FORMAT, VERSION):
            raise ValueError(f"{str(folder)!r} is {found[0]} version {found[1]}; this reads {FORMAT} version {VERSION}")
        try:
            result = _decode(document["result"], tensors)
        except RecursionError as error:
            raise ValueError(f"{str(folder)!r} holds no readable result: it is nested too deeply") from error
        except (TypeError, KeyError, AttributeError, IndexError) as error:  # fields that are gone
            raise ValueError(f"{str(folder)!r} was saved by another version of safecircuits: {error}") from error
        if not isinstance(result, cls):
            raise ValueError(f"{str(folder)!r} holds a {type(result).__name__}, not a {cls.__name__}")
        return result

    def equals(self, other: object) -> bool:
        """Whether ``other`` is a result with exactly the same values (dataclass equality cannot compare tensors)."""
        return _same(self, other)


def _brief(value: Any) -> str:
    """A field in a few characters: tensors by shape, collections by length."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping) or (isinstance(value, tuple | list) and not _is_short(value)):
        return f"<{type(value).__name__} of {len(value)}>"
    if is_dataclass(value) and type(value).__str__ is object.__str__ and not isinstance(value, Result):
        return f"<{type(value).__name__}>"
    text = repr(value) if isinstance(value, str) or value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_short(items: tuple[Any, ...] | list[Any]) -> bool:
    return len(items) <= 8 and all(isinstance(item, str | int | float) for item in items)


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"$tensor": key}
    if is_dataclass(value) and not isinstance(value, type):
        name = registered_name(type(value))
        parts = {field.name: _encode(getattr(value, field.name), tensors) for field in fields(value)}
        return {"$class": name, "fields": parts}
    if isinstance(value, Mapping):
        return {"$map": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if isinstance(value, np.generic):  # a seed out of numpy's arange, say
        return value.item()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a {type(value).__name__} has no place in a result")


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if "$tensor" in node:
        return tensors[node["$tensor"]]
    if "$tuple" in node:
        return tuple(_decode(item, tensors) for item in node["$tuple"])
    if "$map" in node:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in node["$map"]}
    kind = class_named(node["$class"])
    return kind(**{name: _decode(part, tensors) for name, part in node["fields"].items()})


def _same(a: Any, b: Any) -> bool:
    """Whether two results hold the same values; tensors are compared by value, and NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    a, b = (value.item() if isinstance(value, np.generic) else value for value in (a, b))
    if isinstance(a, str) and isinstance(b, str):  # a Template is loaded as the text that names it
        return str(a) == str(b)
    if type(a) is not type(b):
        return False
    if is_dataclass(a):
        return all(_same(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
