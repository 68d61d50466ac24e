"""The localizers that the leaderboard scores: a function, its name, the object that it names and whose it is.

One is added by decorating a function of a ``Subject`` with ``localizer``; see ``docs/how-to/add-a-localizer.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from benchmarks.ground_truth.leaderboard.subjects import Subject
from safecircuits.base.vocabulary import LayerRange, Site
from safecircuits.direction.interventions import To
from safecircuits.direction.vector import Direction

Object = Literal["block", "units", "direction"]
OBJECTS: tuple[Object, ...] = get_args(Object)

Order = Mapping[Site, Tensor]
"""A number a unit, ``[layer, unit]`` by site: high for what refusal should need; −∞ for what is never taken."""


class Directions(NamedTuple):
    """The best direction first, all measured at one layer and token, and how they are taken out.

    ``to``: ``"zero"`` takes all of them out everywhere; ``"harmless"`` puts them to the harmless mean, once, after
    their own layer.
    """

    best: tuple[Direction, ...]
    to: To


class NotRun(NamedTuple):
    """That a localizer was not run on a model, and why; its row says so."""

    why: str


Found = LayerRange | Order | Directions | NotRun | None
"""What a localizer names: a block, an order of units, or directions; None where its rule finds nothing."""

Find = Callable[[Subject], Found]


@dataclass(frozen=True)
class Localizer:
    """A method under its name."""

    name: str
    object: Object
    source: str
    """Whose it is: a paper, ``"ours"``, or ``"control"``."""
    find: Find
    needs_base: bool
    """Whether it looks at the checkpoint before alignment, too."""


LOCALIZERS: dict[str, Localizer] = {}


def localizer(name: str, object: Object, source: str, *, needs_base: bool = False) -> Callable[[Find], Find]:
    """Put a function on the leaderboard.

    Raises:
        ValueError: for a name that is taken, and an object that there is not.
    """
    if name in LOCALIZERS:
        raise ValueError(f"there is a localizer {name!r} already; give this one another name")
    if object not in OBJECTS:
        raise ValueError(f"a localizer names one of {', '.join(OBJECTS)}, not {object!r}")

    def register(find: Find) -> Find:
        LOCALIZERS[name] = Localizer(name, object, source, find, needs_base)
        return find

    return register


def localizers(only: list[str] | None = None) -> list[Localizer]:
    """All, object by object in the order in which they were registered, or those named.

    Raises:
        ValueError: for a name that there is not.
    """
    from benchmarks.ground_truth.leaderboard import blocks, directions, units  # noqa: F401  registers

    unknown = [name for name in only or () if name not in LOCALIZERS]
    if unknown:
        raise ValueError(f"no localizer {unknown[0]!r}; there are {', '.join(LOCALIZERS)}")
    chosen = [one for name, one in LOCALIZERS.items() if not only or name in only]
    return sorted(chosen, key=lambda one: OBJECTS.index(one.object))
