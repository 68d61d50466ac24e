"""The answers behind the counts of a page: found in its results, whichever they are, each set of answers once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import DETECTORS
from safecircuits.behavior.verdict import unjudged, verdicts
from safecircuits.behavior.verdict_table import Verdicts
from safecircuits.results.result import Result

HARMLESS = ("normal", "over_rejection", "utility", "task")
"""Sets whose prompts ask for nothing harmful, so that their answers may be shown to anybody."""

_SAID = ("rows", "points", "behavior", "answers", "attempts", "runs", "judged", "completions", "")
"""Names of fields that say nothing of what the answers are."""
_NAMES = ("scenario", "arm", "seed", "name", "layers", "alpha", "condition", "group", "share", "bound")
_FOUND = ("layers", "alpha")
"""Which of these a ``Result`` has found; where they are a condition, they are a field of one of its rows."""


@dataclass(frozen=True)
class View:
    """The answers that one count counts: ``key`` is their digest, ``label`` where they are from, ``of`` their set."""

    label: str
    of: str
    found: Verdicts

    @property
    def key(self) -> str:
        return self.found.digest

    @property
    def harmless(self) -> bool:
        """Whether the prompts ask for nothing harmful."""
        return self.of in HARMLESS


def views(results: Mapping[str, Any]) -> list[View]:
    """The answers in results, by the names of these, in order; those that occur twice once."""
    found: dict[str, View] = {}
    for name, result in results.items():
        for one in _within(result, (name.replace("_", " "),), "", ""):
            found.setdefault(one.key, one)
    return list(found.values())


def _within(value: Any, path: tuple[str, ...], of: str, detector: str) -> Iterator[View]:
    """The answers anywhere in a value; ``of`` and ``detector`` are what the values around it say of theirs."""
    if isinstance(value, Verdicts):
        yield View(_label(path), of, value)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if not isinstance(one, str | int | float | bool | None):
                yield from _within(one, (*path, str(key)), str(key), detector)
    elif isinstance(value, tuple | list):
        for place, one in enumerate(value):
            if not is_dataclass(one) and not isinstance(one, Mapping | tuple | list):
                return
            named = any(getattr(one, name, None) is not None for name in _NAMES) or len(value) == 1
            yield from _within(one, path if named else (*path, str(place)), of, detector)
    elif is_dataclass(value):
        of, detector = _asked(value, of), _detector(value, detector)
        path = (*path, *_given_under(value))
        if (counted := _counted(value, detector)) is not None:
            yield View(_label(path), of, counted)
        for field in fields(value):
            if field.name != "provenance":
                said = "" if field.name in _SAID else field.name.replace("_", " ")
                yield from _within(getattr(value, field.name), (*path, said), of, detector)


def _given_under(value: Any) -> list[str]:
    """What names the answers in a value; what a result found, in layers or by numbers of each layer, does not."""
    names = [name for name in _NAMES if not (isinstance(value, Result) and name in _FOUND)]
    said = {name: getattr(value, name, None) for name in names}
    return [_word(name, one) for name, one in said.items() if one is not None and not isinstance(one, Tensor)]


def _label(path: tuple[str, ...]) -> str:
    return " · ".join(dict.fromkeys(part for part in path if part))


def _word(name: str, value: Any) -> str:
    return f"{name} {value}" if name in ("seed", "layers", "alpha", "share") else str(value)


def _asked(value: Any, of: str) -> str:
    about = getattr(value, "provenance", None)
    if not isinstance(about, Mapping):
        return of
    return next((name for name in ("malicious", "over_rejection") if name in about), of)


def _detector(value: Any, detector: str) -> str:
    about = getattr(value, "provenance", None)
    said = about.get("detector") if isinstance(about, Mapping) else None
    return str(said) if said is not None else detector


def _counted(value: Any, detector: str) -> Verdicts | None:
    """Completions beside which a result says which of them refuse: judged again where the detector is known by name."""
    refused = getattr(value, "refused", None)
    texts = next(
        (one for name in ("completions", "answers") if isinstance(one := getattr(value, name, None), Completions)), None
    )
    if not isinstance(refused, Tensor) or texts is None or refused.shape != (len(texts),):
        return None
    if detector in DETECTORS and (found := verdicts(texts, detector)).refused.equal(refused):
        return found
    labels = tuple("refuses" if one else "complies" for one in refused.tolist())
    return replace(unjudged(texts), verdicts=labels, detector=detector)
