"""The words that everything speaks in: sites of units, components of a layer, whose tokens count, blocks of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from safecircuits.base.arguments import whole

Site = Literal["mlp", "attn", "expert", "shared", "router"]
"""Neurons of an MLP and attention heads; in a mixture of experts neurons of the experts (numbered expert after expert)
and of the shared expert, and experts as the router knows them."""
ALL_SITES: tuple[Site, ...] = get_args(Site)
SITES: tuple[Site, ...] = ("mlp", "attn")
"""Those that every layer of a dense model has."""
MIXTURE_SITES: tuple[Site, ...] = ("expert", "shared", "router")

Component = Literal["q", "k", "v", "o", "gate", "in", "out"]
COMPONENTS: tuple[Component, ...] = get_args(Component)

TokenChoice = Literal["response", "prompt", "all"]
"""Whose positions count in a score: the response's, the prompt's, or all."""
TOKEN_CHOICES: tuple[TokenChoice, ...] = get_args(TokenChoice)


@dataclass(frozen=True, order=True)
class LayerRange:
    """A contiguous block of layers, 0-indexed and inclusive at both ends; ``first, last = range`` unpacks it.

    Examples:
        >>> block = sc.LayerRange.of((3, 5), n_layers=8)
        >>> list(block.indices)
        [3, 4, 5]
        >>> round(block.overlap(sc.LayerRange(3, 6)), 2)
        0.75
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        try:  # numpy's whole numbers become Python's, which can be saved
            first, last = whole(self.first, "first"), whole(self.last, "last")
        except ValueError:
            raise ValueError(f"a layer range is a pair of whole numbers, not {(self.first, self.last)}") from None
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "last", last)
        if not 0 <= first <= last:
            raise ValueError(f"layer range [{first}, {last}] is not 0 <= first <= last")

    @classmethod
    def of(cls, layers: LayerRange | Sequence[int], n_layers: int | None = None) -> LayerRange:
        """Read a range from a LayerRange or a (first, last) pair, checked against the model's ``n_layers``.

        A ``range`` without gaps is read as Python means it, without its end.
        """
        if not isinstance(layers, LayerRange):
            layers = cls(*_ends(layers))
        if n_layers is not None and layers.last >= n_layers:
            raise ValueError(
                f"layer range [{layers.first}, {layers.last}] is outside the model, "
                f"whose layers are 0 to {n_layers - 1}"
            )
        return layers

    def __iter__(self) -> Iterator[int]:
        return iter((self.first, self.last))

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, layer: int) -> bool:
        return self.first <= layer <= self.last

    def __str__(self) -> str:
        return f"[{self.first}, {self.last}]"

    @property
    def indices(self) -> range:
        """The layers of the block."""
        return range(self.first, self.last + 1)

    def overlap(self, other: LayerRange) -> float:
        """Intersection over union of the two blocks, in layers."""
        mine, theirs = set(self.indices), set(other.indices)
        return len(mine & theirs) / len(mine | theirs)


def _ends(layers: Any) -> tuple[Any, Any]:
    """What is given as a pair of layers, or a ValueError that says how to give it."""
    wanted = "a layer range is a (first, last) pair, both inclusive"
    if isinstance(layers, range):
        if layers and layers.step == 1:
            return layers[0], layers[-1]
        raise ValueError(f"{wanted}; {layers} has gaps or no layers")
    if isinstance(layers, set | frozenset):
        raise ValueError(f"{wanted}; got the set {set(layers)}, which has no order and may have gaps")
    try:
        pair = tuple(layers)
    except TypeError:
        hint = ": give its .layers" if hasattr(layers, "layers") else ""
        if hasattr(layers, "__index__"):
            hint = f": one layer is ({layers}, {layers})"
        shown = type(layers).__name__ if hasattr(layers, "layers") else repr(layers)
        raise ValueError(f"{wanted}; got {shown}{hint}") from None
    if len(pair) != 2:
        raise ValueError(f"{wanted}; got {pair}")
    return pair[0], pair[1]
