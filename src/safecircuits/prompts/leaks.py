"""Prompts that two sets share, exactly or nearly: what was found on some prompts is not to be judged on the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from safecircuits.base.arguments import checked
from safecircuits.base.notices import notify
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set

NEAR = 0.8
"""Jaccard similarity of word pairs above which two prompts count as the same one in other words."""


@dataclass(frozen=True)
class Overlap:
    """Pairs of prompts by their indices in both sets: ``exact`` up to case, signs and spaces; ``near`` otherwise.

    Examples:
        >>> mine = sc.PromptSet("mine", ("how do i bake a cake ?", "name a fruit ."))
        >>> found = sc.prompts.overlap(mine, sc.PromptSet("test", ("Name a fruit",)))
        >>> found.exact, found.rows
        (((1, 0),), (0,))
    """

    first: PromptSet
    second: PromptSet
    exact: tuple[tuple[int, int], ...]
    near: tuple[tuple[int, int], ...]

    def __bool__(self) -> bool:
        return bool(self.exact or self.near)

    @property
    def rows(self) -> tuple[int, ...]:
        """Prompts of the second set that the first has, by index."""
        return tuple(sorted({j for _, j in self.exact + self.near}))

    @property
    def counted(self) -> str:
        """How many prompts are shared, without their texts, for what is passed on."""
        if not self:
            return f"{self.first.name!r} and {self.second.name!r} share no prompt"
        same = len({place for _, place in self.exact})
        return (
            f"{len(self.rows)} of the {len(self.second)} prompts of {self.second.name!r} are in {self.first.name!r}, "
            f"too ({same} the same, {len(self.rows) - same} nearly)"
        )

    def __str__(self) -> str:
        if not self:
            return self.counted
        i, j = (self.exact + self.near)[0]
        texts = dict.fromkeys(repr(text[:60]) for text in (self.second.prompts[j], self.first.prompts[i]))
        return f"{self.counted}: {' and '.join(texts)}"


@checked
def overlap(first: PromptSet | Sequence[str], second: PromptSet | Sequence[str], *, near: float = NEAR) -> Overlap:
    """Prompts of ``second`` that are in ``first``, exactly or nearly.

    Nearly is a share of at least ``near`` of the pairs of neighbouring words that either has (Jaccard), of the words
    themselves for prompts of fewer than four. Prompts in scripts without spaces are compared by pairs of characters.

    Examples:
        >>> found = overlap(["How do I bake a good cake?"], ["how do i bake a good cake", "Name a fruit."])
        >>> found.exact, found.near
        (((0, 0),), ())
    """
    if not 0 < near <= 1:
        raise ValueError(f"near is a share above 0 and at most 1, not {near}")
    a, b = as_prompt_set(first, "first"), as_prompt_set(second, "second")
    words = [[_words(prompt) for prompt in prompts] for prompts in (a, b)]
    places: dict[tuple[str, ...], list[int]] = {}
    holders: dict[tuple[str, ...], set[int]] = {}
    pieces = [_pieces(of) for of in words[0]]
    for i, of in enumerate(words[0]):
        places.setdefault(tuple(of), []).append(i)
        for piece in pieces[i]:
            holders.setdefault(piece, set()).add(i)
    exact, nearly = [], []
    for j, of in enumerate(words[1]):
        same = places.get(tuple(of), [])
        exact += [(i, j) for i in same]
        mine = _pieces(of)
        candidates = set().union(*(holders.get(piece, set()) for piece in mine)) - set(same)
        nearly += [(i, j) for i in sorted(candidates) if len(mine & pieces[i]) >= near * len(mine | pieces[i])]
    return Overlap(a, b, tuple(exact), tuple(nearly))


def tell_overlaps(found_on: Mapping[str, PromptSet | None], judged_on: Mapping[str, PromptSet | None]) -> list[Overlap]:
    """A notice for each set to judge on that shares prompts with one to find on; those overlaps, to be kept.

    Args:
        found_on, judged_on: by what they are for; sets that are not there are passed over.

    Examples:
        >>> mine = sc.PromptSet("mine", ("how do i bake a cake ?", "name a fruit ."))
        >>> found = sc.prompts.tell_overlaps({"scores": mine}, {"ablation": sc.PromptSet("test", ("Name a fruit",))})
        >>> found[0].rows
        (0,)
    """
    found = []
    for finding, first in found_on.items():
        for judging, second in judged_on.items():
            if first is None or second is None:
                continue
            shared = overlap(first, second)
            if shared:
                notify(f"what is found on {finding} is judged on {judging}, but {shared}: judge on others")
                found.append(shared)
    return found


def _words(prompt: str) -> list[str]:
    text = unicodedata.normalize("NFKC", prompt).casefold()
    words = re.findall(r"[^\W_]+", text)
    return list("".join(words)) if len(words) < 3 and len("".join(words)) > 12 and not text.isascii() else words


def _pieces(words: Sequence[str]) -> set[tuple[str, ...]]:
    if len(words) < 4:
        return {(word,) for word in words}
    return set(pairwise(words))
