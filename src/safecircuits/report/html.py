"""One HTML file that holds everything: words, figures, tables and style, and asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from safecircuits.files import write_text
from safecircuits.report.data import Record
from safecircuits.report.figures import single_figures
from safecircuits.report.sections import Exhibit, Section, sections
from safecircuits.report.style import styled
from safecircuits.report.svg import inline_svg
from safecircuits.report.tables import mapping
from safecircuits.report.text import plain

VERDICTS = {"yes": ("✓", "Shows"), "no": ("✗", "Does not show"), "unclear": ("?", "Unclear")}
"""Mark and words for what a conclusion ``shows``."""

MODEL_FACTS = {"n_parameters": "parameters", "n_layers": "layers", "n_heads": "heads", "n_kv_heads": "key/value heads"}


@dataclass(frozen=True)
class Plate:
    """An exhibit with its drawing."""

    exhibit: Exhibit
    svg: Markup


def write_report(results: Record, path: str | Path) -> Path:
    """Write ``results`` (see ``results.json``) as one self-contained HTML file, complete or not at all.

    Parts that are absent from ``results`` are absent from the report. All strings are escaped.

    Returns:
        The path written.
    """
    return write_text(path, render(results))


@styled
def render(results: Record) -> str:
    """The report as HTML."""
    drawn = single_figures(results)
    parts: list[tuple[Section, list[Plate]]] = []
    for section in sections(results):
        plates = [
            Plate(exhibit, inline_svg(drawn[exhibit.figure], exhibit.figure, f"{exhibit.label}. {exhibit.caption}"))
            for exhibit in section.exhibits
        ]
        parts.append((section, plates))
    provenance = results.get("provenance") or {}
    model = results.get("model") or {}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("safecircuits.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=f"Safety circuits of “{model['name']}”" if model.get("name") else "Safety circuits",
        model_facts=[(MODEL_FACTS.get(key, key), plain(value)) for key, value in model.items() if key != "name"],
        conclusions=results.get("conclusions") or [],
        verdicts=VERDICTS,
        parts=parts,
        provenance_facts=[(key, plain(v)) for key, v in provenance.items() if not isinstance(v, Mapping)],
        provenance_tables=[mapping(key, v) for key, v in provenance.items() if isinstance(v, Mapping) and v],
    )
