"""What the reports of both papers' studies share: sections with their figures, and exhibits that both have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safecircuits.base.counted import HEADING, Beside, at_most, headings
from safecircuits.base.counted import cells as rate_cells
from safecircuits.base.record import Record, Recorded, ablations, records_of, rows_of
from safecircuits.base.text import percent, points
from safecircuits.layers.localization import Localization
from safecircuits.plots.finetuning import plot_study
from safecircuits.plots.layers import plot_sweeps
from safecircuits.plots.rates import plot_behavior
from safecircuits.plots.style import COLUMN
from safecircuits.plots.units import plot_ablation, plot_unit_map
from safecircuits.report import captions, tables
from safecircuits.report.html import Around, page
from safecircuits.report.kl_columns import kl_cells, kl_headings
from safecircuits.report.sections import Exhibit, Section
from safecircuits.report.tables import Table
from safecircuits.results.by_category import with_categories
from safecircuits.studies.comparison import REFUSED, Comparison
from safecircuits.studies.outcome import RATES, FinetuningStudy
from safecircuits.units.ablation import ONE_DRAW, AblationTable
from safecircuits.units.groups import UnitGroups


@dataclass
class StudyPage:
    """Sections in order, and the figures that they name."""

    sections: list[Section] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)

    def add(self, id: str, title: str, intro: str, exhibits: Sequence[Exhibit]) -> None:
        """Add a section, unless nothing was measured for it."""
        if exhibits:
            self.sections.append(Section(id, title, intro, exhibits))

    def axes(self, name: str, height: float = COLUMN[1], width: float = COLUMN[0]) -> Axes:
        """Where to draw a new figure of this name, of a size in inches."""
        self.figures[name] = figure = Figure(figsize=(width, height))
        axes: Axes = figure.subplots()
        return axes

    def render(
        self,
        title: str,
        facts: Mapping[str, Any],
        conclusions: Sequence[Mapping[str, str]],
        provenance: Mapping[str, Any],
        **more: Unpack[Around],
    ) -> tuple[str, dict[str, Figure]]:
        """The whole page as HTML, and its figures by name."""
        about: dict[str, Any] = {"facts": facts, "conclusions": conclusions, "provenance": provenance}
        return page(title, self.sections, self.figures, **about, **more), self.figures


def behavior_exhibit(made: StudyPage, name: str, label: str, behavior: Mapping[str, Recorded | Record]) -> Exhibit:
    """The rates of several models as a figure of that name, in words, and as a table."""
    record = records_of(behavior)
    plot_behavior(record, ax=made.axes(name, 0.85 + 0.42 * len(record)))
    return Exhibit(name, label, captions.behavior(record), [tables.behavior(record)])


def sweeps_exhibit(made: StudyPage, name: str, label: str, found: Localization, lead: str = "") -> Exhibit:
    """The counts of a localization as a figure of that name, in words after ``lead``, and as tables."""
    record = found.record()
    plot_sweeps(record, ax=made.axes(name))
    return Exhibit(name, label, f"{lead}{captions.sweeps(record)}", tables.sweeps(record))


def groups_exhibit(made: StudyPage, name: str, label: str, lead: str, groups: UnitGroups) -> Exhibit:
    """Where the units of each group lie, as a figure of that name and as a table, with the groups' shares."""
    record = groups.record()
    plot_unit_map(record, ax=made.axes(name, 3.2))
    shares = ", ".join(f"{group} {percent(share)}" for group, share in groups.shares().items())
    return Exhibit(name, label, f"{lead}{shares}.", [tables.unit_map(record)])


def removal_exhibit(
    made: StudyPage, name: str, label: str, lead: str, table: AblationTable, numbers: Sequence[Table] = ()
) -> Exhibit:
    """What is left without each group, as a figure of that name, and ``numbers`` or a table of its own."""
    plot_ablation(table, ax=made.axes(name))
    drawn = "Diamonds and dots: without as many random units, the mean and each draw."
    if any(len(row.random_controls) == 1 for row in table.rows):
        drawn = f"Diamonds: {ONE_DRAW}."
    counts = at_most([row for both in ablations(table) for row in both.values()], REFUSED)
    caption = f"{lead}{drawn}" + (f" Of the answers to malicious prompts {counts}." if counts else "")
    return Exhibit(name, label, caption, numbers or [removal_table(table, "activations set to zero")])


def removal_table(table: AblationTable, condition: str) -> Table:
    """Rates left by what is removed; of few random draws the least and the most."""
    groups, controls = ablations(table)
    # These say more than an interval that may leave the unit range.
    spread = {
        name: {
            **row,
            **{
                f"{draws.removesuffix('_draws')}_interval": [min(row[draws]), max(row[draws])]
                for draws in row
                if draws.endswith("_draws")
            },
        }
        for name, row in controls.items()
    }
    plain_table = tables.ablation(groups, spread)
    title = f"Rates left [95 %; of random draws least, most]: {condition}"
    return Table(title, plain_table.columns, plain_table.rows)


def published_exhibit(title: str, rows: Sequence[Sequence[str]]) -> Exhibit:
    """Table, setting, metric and published number of each row, and what was measured, which may be empty."""
    known = sum(bool(row[-1]) for row in rows)
    text = f"{known} of {len(rows)} have a number measured here."
    table = Table(title, ["table", "setting", "metric", "published", "measured"], rows)
    return Exhibit(None, "Published and measured", text, [table])


def finetuning_exhibit(
    made: StudyPage,
    name: str,
    study: FinetuningStudy,
    scenario: str,
    drawn: Sequence[str],
    compared: Sequence[Table],
    height: float = 3.1,
) -> Exhibit:
    """One scenario: a curve of refusal for the arms that are drawn, what is left of every arm, and comparisons."""
    plot_study(study, scenario, arms=drawn, ax=made.axes(name, height))
    summary = study.summary()
    left_out = "" if set(study.arms) <= set(drawn) else " The tables have the other arms."
    caption = (
        f"{scenario}. Thin lines are seeds, thick ones their mean with 95 % intervals; nothing frozen is dashed. "
        f"Further right, more of the task is learnt.{left_out}"
    )
    rows = summary[summary["scenario"] == scenario]
    if counts := at_most(rows_of(rows), REFUSED):
        caption += f" Of the answers to malicious prompts after it {counts}."
    shown = [arms_table(rows), *compared]
    return Exhibit(name, f"Refusal against task loss in {scenario}", caption, shown)


_LABELS = {
    "over_rejected": "over-rejected",
    "refused_with_system": "refused, system prompt",
    "refused_prefilled": "refused, answer prefilled",
}


def arms_table(rows: pd.DataFrame) -> Table:
    """The arms of one scenario after fine-tuning, from the rows of ``FinetuningStudy.summary()``."""
    shown = [name for name in RATES if name in rows]
    cells, all_of = [], rows_of(rows)
    for row in all_of:
        values = rate_cells(row, all_of, shown, [with_interval(row, name) for name in shown])
        cost = f"{1000 * row['step_seconds']:.1f} ms"
        memory = f"{(row['gradient_bytes'] + row['optimizer_bytes']) / 2**20:.1f} MiB"
        steps = f"{row['steps']:g}"
        cells.append(
            [
                str(row["arm"]),
                *values,
                *kl_cells(row, all_of),
                f"{row['task_loss']:.3g}",
                steps,
                cost,
                memory,
                percent(row["share_frozen"]),
            ]
        )
    columns = [
        "arm",
        *headings(all_of, shown, [_LABELS.get(name, name.replace("_", " ")) for name in shown]),
        *kl_headings(all_of),
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
            Beside.of(comparison.beside, REFUSED).cell,
            percent(comparison.reference_kept),
            Beside.of(comparison.reference_beside, REFUSED).cell,
            points(comparison.mean, comparison.low, comparison.high),
            comparison.verdict,
        ]
        for comparison in found
    ]
    references = {comparison.reference for comparison in found}
    reference = "full fine-tuning" if references <= {"full"} else "the other arm"
    columns = ["arm", "compared at", "refused", HEADING, reference, HEADING, "difference, points [95 %]", "verdict"]
    return Table(title, columns, rows)


def finetuning_tables(name: str, tuned: FinetuningStudy | None) -> dict[str, pd.DataFrame]:
    """The files of a fine-tuning study: means over seeds, every run, and its rates by category where there are any."""
    if tuned is None:
        return {}
    frames = with_categories({f"{name}_runs": tuned})
    return {name: tuned.summary(), **frames}
