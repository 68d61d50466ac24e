"""One HTML file that holds everything: words, figures, tables and style, and asks the network for nothing.

What it shows may come from anybody: strings are escaped, figures sanitised (see svg.py), and a content security policy
in its head lets a browser fetch nothing and run no script but its own (scripts.py), by its hash, whatever should get
past both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, TypedDict

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from safecircuits.base.outputs import GENERATOR
from safecircuits.base.record import Record
from safecircuits.base.text import plain
from safecircuits.plots.style import styled
from safecircuits.plots.svg import inline_saved, inline_svg
from safecircuits.report import scripts
from safecircuits.report.explored import Explored
from safecircuits.report.opening import WORDS, counted
from safecircuits.report.sections import Exhibit, Section
from safecircuits.report.tables import mapping, sortable, worded
from safecircuits.report.unit_views import UnitsShown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS = {
    "yes": ("✓", "Supported"),
    "no": ("✗", "Not supported"),
    "unclear": ("?", "Inconclusive"),
    "inconclusive": ("∅", "Inconclusive"),
}
"""Mark and words for what a conclusion ``shows``: the numbers leave it open, or there was nothing that could show."""


@dataclass(frozen=True)
class Plate:
    """An exhibit with its drawing, if it has one."""

    exhibit: Exhibit
    svg: Markup | None


class Around(TypedDict, total=False):
    """What stands before and behind the sections of a page; see ``page``."""

    opening: Sequence[str]
    answers: Explored | None
    units: UnitsShown | None


@styled
def page(
    title: str,
    parts: Sequence[Section],
    drawn: Mapping[str, Figure | str],
    *,
    facts: Record,
    conclusions: Sequence[Record],
    provenance: Record,
    opening: Sequence[str] = (),
    answers: Explored | None = None,
    units: UnitsShown | None = None,
) -> str:
    """One self-contained page of any sections.

    Args:
        drawn: the figures that the exhibits name, or the text of their SVG files.
        facts: about the model, shown below the title.
        conclusions: what shows and what does not: ``effect``, ``paper``, ``shows`` (yes, no, unclear,
            inconclusive) and ``text``.
        provenance: how the numbers were made; entries that are mappings become tables.
        opening: what a reader must know first, a sentence a line (``opening.opening``).
        answers: those that the cells of tables count, to be followed from there.
        units: what drives units, and what they write, to be followed from each to the others.

    Examples:
        >>> html = sc.report.page("Mine", [], {}, facts={"layers": 8}, conclusions=[], provenance={"seed": 0})
        >>> "<title>Mine</title>" in html
        True
    """
    ids = slugs(drawn)
    plates = [
        (
            section,
            [Plate(e, _inline(drawn[e.figure], ids[e.figure], e) if e.figure else None) for e in section.exhibits],
        )
        for section in parts
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("safecircuits.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        generator=Markup(GENERATOR),
        title=title,
        model_facts=[(key, plain(value)) for key, value in facts.items()],
        conclusions=conclusions,
        opening=opening,
        answers=answers,
        units=units,
        scripts=scripts,
        explorable=bool(answers or units or conclusions or parts),
        found=counted(conclusions),
        words_of=WORDS,
        sortable=sortable,
        worded=worded,
        verdicts=VERDICTS,
        parts=plates,
        provenance_facts=[(key, plain(v)) for key, v in provenance.items() if not isinstance(v, Mapping)],
        provenance_tables=[mapping(key, v) for key, v in provenance.items() if isinstance(v, Mapping) and v],
    )


def _inline(drawing: Figure | str, name: str, exhibit: Exhibit) -> Markup:
    label = f"{exhibit.label}. {exhibit.caption}"
    return inline_saved(drawing, name, label) if isinstance(drawing, str) else inline_svg(drawing, name, label)


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Names as parts of file names and ids, all different: ``planted-layers`` becomes ``planted_layers``."""
    made: dict[str, str] = {}
    for name in names:
        plain = slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "unnamed"
        number = 1
        while slug in made.values():
            number += 1
            slug = f"{plain}_{number}"
        made[name] = slug
    return made
