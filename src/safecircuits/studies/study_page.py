"""What the reports of both papers' studies share: sections with their figures, and tables of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from safecircuits.report.html import page
from safecircuits.report.sections import Exhibit, Section
from safecircuits.report.tables import Table
from safecircuits.report.text import percent, points
from safecircuits.studies.compare import Comparison


@dataclass
class StudyPage:
    """Sections in order, and the figures that they name."""

    sections: list[Section] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)

    def add(self, id: str, title: str, intro: str, exhibits: Sequence[Exhibit]) -> None:
        """Add a section, unless nothing was measured for it."""
        if exhibits:
            self.sections.append(Section(id, title, intro, exhibits))

    def render(
        self,
        title: str,
        facts: Mapping[str, Any],
        conclusions: Sequence[Mapping[str, str]],
        provenance: Mapping[str, Any],
    ) -> tuple[str, dict[str, Figure]]:
        """The whole page as HTML, and its figures by name."""
        html = page(title, self.sections, self.figures, facts=facts, conclusions=conclusions, provenance=provenance)
        return html, self.figures


_RATES = {
    "malicious_refused": "malicious refused",
    "over_rejected": "over-rejected",
    "utility": "utility",
    "task_score": "task score",
    "refused_with_system": "refused, system prompt",
    "refused_prefilled": "refused, answer prefilled",
}


def arms_table(rows: pd.DataFrame) -> Table:
    """The arms of one scenario after fine-tuning, from the rows of ``FinetuningStudy.summary()``."""
    shown = [name for name in _RATES if name in rows]
    cells = []
    for row in rows.to_dict("records"):
        values = [with_interval(row, name) for name in shown]
        cost = f"{1000 * row['step_seconds']:.1f} ms"
        memory = f"{(row['gradient_bytes'] + row['optimizer_bytes']) / 2**20:.1f} MiB"
        steps = f"{row['steps']:g}"
        cells.append(
            [str(row["arm"]), *values, f"{row['task_loss']:.3g}", steps, cost, memory, percent(row["share_frozen"])]
        )
    columns = [
        "arm",
        *(_RATES[name] for name in shown),
        "task loss",
        "steps",
        "step",
        "gradients + optimizer",
        "frozen",
    ]
    return Table("After fine-tuning: mean over seeds [95 %]", columns, cells)


def with_interval(row: Mapping[Any, Any], name: str) -> str:
    """A rate of a summary's row in percent, with its interval if several seeds gave one."""
    text = percent(row[name])
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return text if math.isnan(low) else f"{text} [{100 * low:.0f}, {100 * high:.0f}]"


def compared_table(found: Sequence[Comparison], title: str = "Against full fine-tuning, paired by seed") -> Table:
    """Comparisons between arms, each at equal steps and at equal loss."""
    rows = [
        [
            comparison.arm,
            comparison.at if comparison.level is None else f"loss {comparison.level:.3g}",
            percent(comparison.kept),
            percent(comparison.reference_kept),
            points(comparison.mean, comparison.low, comparison.high),
            comparison.verdict,
        ]
        for comparison in found
    ]
    references = {comparison.reference for comparison in found}
    reference = "full fine-tuning" if references <= {"full"} else "the other arm"
    columns = ["arm", "compared at", "refused", reference, "difference, points [95 %]", "verdict"]
    return Table(title, columns, rows)
