"""The page that holds runs of one command against each other."""

from __future__ import annotations

from dataclasses import replace

from safecircuits.plots.style import styled
from safecircuits.plots.svg import is_wide
from safecircuits.report.answers import views
from safecircuits.report.compare_runs import ComparedTable, RunComparison
from safecircuits.report.explored import explored
from safecircuits.report.html import page
from safecircuits.report.opening import embedded, opening
from safecircuits.report.overlays import overlays
from safecircuits.report.run_pages import described
from safecircuits.report.saved import cell, frame_table, titled
from safecircuits.report.sections import Exhibit, Section
from safecircuits.report.tables import Table
from safecircuits.results.load_record import run_provenance

OPEN = 3
"""Columns of a table that are shown without being asked for."""


@styled
def compare_page(compared: RunComparison, *, with_completions: bool = False) -> str:
    """The page as HTML.

    Args:
        with_completions: show prompts and answers of harmful sets, folded; where all runs are of the embedded organism
            they are shown in any case.
    """
    runs = compared.runs
    shared, figures, replaced = overlays(runs)
    drawn = dict(figures)
    parts = [
        Section(
            "settings",
            "What differs in the settings",
            "Everything else that decides an outcome (options, prompts, weights) is the same in all runs.",
            [_settings(compared)],
        ),
        Section(
            "found",
            "What was found",
            "",
            [
                Exhibit(None, run.name, "\n".join([f"{run.name}:", *(run.record.get("findings") or ["–"])]))
                for run in runs
            ],
        ),
    ]
    if shared:
        parts.append(Section("together", "In one figure", "", shared))
    drawings = [run.drawings() for run in runs]
    beside: list[Exhibit] = []
    saved: dict[str, str] = {}
    for name in drawings[0]:
        if name not in replaced and all(name in found for found in drawings):
            for number, (run, found) in enumerate(zip(runs, drawings, strict=True)):
                saved[f"{name}_of_{number}"] = found[name]
                text = f"{run.name}: {described(run, name)}."
                narrow = not any(is_wide(drawing[name]) for drawing in drawings)
                beside.append(Exhibit(f"{name}_of_{number}", described(run, name), text, half=narrow))
    if beside:
        parts.append(Section("beside", "Side by side", "The figures of each run, as it drew them.", beside))
    if compared.tables:
        intro = "Columns that differ anywhere, for each run; differences are from the first run."
        parts.append(Section("tables", "Numbers", intro, [_table(table) for table in compared.tables]))
    sources = [run.record["arguments"].get("model") for run in runs]
    answers = views({f"{run.name}: {name}": run.result(name) for run in runs for name in run.kinds()})
    versions = {run.name: str(run.record["provenance"]["version"]) for run in runs}
    return page(
        f"safecircuits {runs[0].command}: {len(runs)} runs compared",
        parts,
        {**drawn, **saved},
        facts={"runs": ", ".join(versions)},
        conclusions=[],
        provenance={run.name: _flat(run_provenance(run.record)) for run in runs},
        opening=opening(f"{len(runs)} runs of safecircuits {runs[0].command} compared,", sources[0], [], answers),
        answers=explored(answers, texts=with_completions or all(map(embedded, sources))),
    )


def _settings(compared: RunComparison) -> Exhibit:
    if not compared.settings:
        return Exhibit(None, "Settings", "Nothing: the runs have the same settings, prompts and weights.")
    names = [run.name for run in compared.runs]
    rows = [[name, *(cell(values[run]) for run in names)] for name, values in compared.settings.items()]
    return Exhibit(None, "Settings", "", [Table("Settings that differ", ["setting", *names], rows)])


def _table(table: ComparedTable) -> Exhibit:
    same = f" The same in all: {', '.join(table.same)}." if table.same else ""
    if not table.differing:
        return Exhibit(None, table.name, f"{titled(table.name)}: the runs agree in every number.")
    # One table a column: all in one would be wider than any page.
    shown = [_column(table, column, folded=number >= OPEN) for number, column in enumerate(table.differing)]
    return Exhibit(None, table.name, f"{titled(table.name)}.{same}", shown)


def _column(table: ComparedTable, column: str, *, folded: bool) -> Table:
    """A column of all runs, with its differences, by the columns that name a row."""
    start = f"{column} ["
    frame = table.frame[[*table.keys, *(name for name in table.frame if str(name).startswith(start))]]
    frame = frame.rename(
        columns=lambda name: name.removeprefix(start).removesuffix("]") if name not in table.keys else name
    )
    return replace(frame_table(column, frame, "the output of --json"), folded=folded)


def _flat(block: dict[str, object]) -> dict[str, object]:
    """Versions and inputs beside the rest: one table a run."""
    plain: dict[str, object] = {}
    for name, value in block.items():
        if name == "arguments":
            continue  # the command says them
        if isinstance(value, dict):
            plain |= {str(key): one for key, one in value.items()}
        else:
            plain[name] = value
    return plain
