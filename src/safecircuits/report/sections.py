"""What a page is made of: sections, with figures and tables in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safecircuits.report.tables import Table


@dataclass(frozen=True)
class Exhibit:
    """A figure by its name, what it shows in words, what the numbers say, and the numbers; or tables without one."""

    figure: str | None
    label: str
    caption: str
    tables: Sequence[Table] = ()
    small: bool = False
    half: bool = False


@dataclass(frozen=True)
class Section:
    """One heading: an explanation, then figures and tables."""

    id: str
    title: str
    intro: str
    exhibits: Sequence[Exhibit]
