"""``--method`` and its settings, read off the method's class: ``--method lora --set r=16``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from safecircuits.cli.found_on import MASK
from safecircuits.cli.signature import attributes_of

if TYPE_CHECKING:
    from safecircuits.cli.frame import Run
    from safecircuits.masks.freeze_mask import FreezeMask
    from safecircuits.training.method import Method


def mask_of(run: Run, path: str | Path) -> FreezeMask:
    """A mask from its file, which is an input of the run."""
    from safecircuits.masks.freeze_mask import FreezeMask

    mask = FreezeMask.load(path)
    run.inputs[f"{MASK}{path}"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return mask


def method_of(run: Run, name: str, given: Sequence[str], usual: Mapping[str, Any] | None = None) -> Method:
    """The method of that name with the settings given as ``NAME=VALUE``.

    Prompts and masks are given by their file, and are inputs of the run.

    Args:
        usual: settings that are what they are here unless given.

    Raises:
        ValueError: for a method or a setting that there is not, a value that is none, and one that must be given.
    """
    from safecircuits.baselines.registered import methods

    known = methods()
    if name not in known:
        raise ValueError(f"--method is one of {', '.join(known)}, not {name!r}")
    kind = known[name]
    values = dict(_pair(one) for one in given)
    hints, words = get_type_hints(kind), attributes_of(kind)
    names = [one.name for one in kind.settings()]
    if unknown := sorted(set(values) - set(names)):
        listed = f"its settings are {', '.join(names)}" if names else "it has none"
        raise ValueError(f"--set {unknown[0]} is no setting of the method {name}: {listed}")
    for one in kind.settings():
        if one.name not in {**values, **(usual or {})} and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"the method {name} needs --set {one.name}=… ({words[one.name]})")
    return kind(**{**(usual or {}), **{one: _read(run, one, text, hints[one]) for one, text in values.items()}})


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise ValueError(f"--set takes NAME=VALUE, not {given!r}")
    return name.strip().replace("-", "_"), value


def _read(run: Run, name: str, text: str, hint: Any) -> Any:
    """A setting's value, by the type that the method says it has."""
    from safecircuits.masks.freeze_mask import FreezeMask
    from safecircuits.prompts.prompt_set import PromptSet
    from safecircuits.training.method import Method

    kinds = [one for one in get_args(hint) or (hint,) if one is not type(None)]
    if get_origin(hint) in (Literal, tuple):
        kinds = [hint]
    if len(kinds) < len(get_args(hint)) and text.lower() == "none":
        return None
    readers: Mapping[Any, Callable[[str], Any]] = {
        int: int,
        float: float,
        bool: _boolean,
        PromptSet: lambda source: run.prompts(name, source, responses=True),
        FreezeMask: lambda path: mask_of(run, path),
        Method: lambda name: method_of(run, name, ()),
        tuple: lambda listed: tuple(part.strip() for part in listed.split(",")),
    }
    kind = get_origin(kinds[0]) or kinds[0]
    try:
        return readers.get(kind, str)(text)
    except ValueError as error:
        if kind not in _WORDS:
            raise
        raise ValueError(f"--set {name} must be {_WORDS[kind]}, not {text!r}") from error


_WORDS: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"
