"""Tables of results, and of those that measured prompts with categories the same table by category."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pandas as pd


class ByCategory(Protocol):
    """A result with a table, and one by category, which is empty where prompts have none."""

    def to_frame(self) -> pd.DataFrame: ...
    def categories(self) -> pd.DataFrame: ...


def with_categories(found: Mapping[str, ByCategory]) -> dict[str, pd.DataFrame]:
    """Each result's table, and behind it the same by category of prompts, where they have any."""
    frames = {}
    for name, one in found.items():
        frames[name] = one.to_frame()
        if len(kinds := one.categories()):
            frames[f"{name}_by_category"] = kinds
    return frames
