"""A verb and what it is done to: the smallest building block of a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Acts:
    """Each verb fits each object: ``plant`` or ``water`` with ``a rose`` or ``a hedge``."""

    verbs: tuple[str, ...]
    objects: tuple[str, ...]

    def all(self) -> list[str]:
        """Every act, in the bare infinitive.

        Examples:
            >>> acts("plant | water", "a rose").all()
            ['plant a rose', 'water a rose']
        """
        return [f"{verb} {thing}" for verb in self.verbs for thing in self.objects]


def acts(verbs: str, objects: str) -> Acts:
    """Acts from verbs and objects that stand between bars."""
    first, second = (tuple(part.strip() for part in text.split("|")) for text in (verbs, objects))
    return Acts(first, second)
