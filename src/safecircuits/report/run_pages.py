"""The report of any run from what it saved: findings, figures with their numbers, tables, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from safecircuits.plots.style import COLUMN, styled
from safecircuits.report.answers import views
from safecircuits.report.explored import explored
from safecircuits.report.html import page
from safecircuits.report.opening import CAVEAT, embedded, opening
from safecircuits.report.saved import SavedRun, frame_table, titled
from safecircuits.report.sections import Exhibit, Section
from safecircuits.report.unit_views import units_shown
from safecircuits.results.load_record import run_provenance
from safecircuits.results.result import Result


def run_page(run: SavedRun, *, with_completions: bool = False) -> str:
    """The page as HTML.

    Args:
        with_completions: show prompts and answers of harmful sets, folded; those of the embedded organism are shown in
            any case.

    Examples:
        >>> html = sc.report.run_page(sc.report.SavedRun.open("runs/gap"))  # doctest: +SKIP
    """
    drawings, tables = run.drawings(), run.tables()
    numbers = {name: frame_table(titled(name), frame, f"tables/{name}.csv") for name, frame in tables.items()}
    findings = list(run.record.get("findings") or [])
    parts = []
    if findings:
        parts.append(_section("found", "What was found", "", [Exhibit(None, "Findings", "\n".join(findings))]))
    drawn = _drawings_of_results(run)
    if drawings or drawn:
        plates = [
            Exhibit(name, shows, shows, [numbers[name]] if name in numbers else [])
            for name in drawings
            for shows in [described(run, name)]
        ]
        plates += [exhibit for exhibit, _ in drawn.values()]
        parts.append(_section("figures", "Figures", "", plates))
    rest = [Exhibit(None, name, "", [table]) for name, table in numbers.items() if name not in drawings]
    if rest:
        parts.append(_section("tables", "Tables", "The same as in the folder tables of the run.", rest))
    results = {name: run.result(name) for name in run.kinds()}
    source, answers = run.record["arguments"].get("model"), views(results)
    texts = with_completions or bool(embedded(source))
    given = run.record["arguments"].get("seeds")
    seeds = given if isinstance(given, int) else None
    return page(
        title(run),
        parts,
        {**drawings, **{name: figure for name, (_, figure) in drawn.items()}},
        facts=facts(run.record),
        conclusions=[],
        provenance=run_provenance(run.record),
        opening=opening(
            f"safecircuits {run.command}",
            source,
            [],
            answers,
            seeds=seeds,
            findings=[line for line in findings if not line.startswith(CAVEAT)],
            doubts=doubts(results, findings),
        ),
        answers=explored(answers, texts=texts),
        units=units_shown(results, texts=texts),
    )


def doubts(results: Mapping[str, Result], findings: Sequence[str]) -> list[str]:
    """What must be held against the findings: first what the run itself told, then each result's ``caveat``, if any.

    Examples:
        >>> from safecircuits.report.run_pages import doubts
        >>> doubts({}, ["41 units", "caveat: as many as were asked for"])
        ['as many as were asked for']
    """
    told = [line.removeprefix(CAVEAT) for line in findings if line.startswith(CAVEAT)]
    return [*told, *(one for result in results.values() if (one := str(getattr(result, "caveat", ""))))]


def title(run: SavedRun) -> str:
    """What was run, and on which model."""
    model = run.record["arguments"].get("model")
    return f"safecircuits {run.command}" + (f" on “{model}”" if model else "")


def facts(record: Mapping[str, object]) -> dict[str, object]:
    """What a reader looks for first."""
    arguments = record["arguments"]
    assert isinstance(arguments, Mapping)
    chosen = {key: arguments[key] for key in ("model", "seed", "backend", "dtype") if arguments.get(key) is not None}
    return {**chosen, "finished": record["finished"]}


def described(run: SavedRun, name: str) -> str:
    """What a figure shows, as the run noted when it drew it."""
    noted = run.record.get("figures", {}).get(name, {})
    return noted.get("shows") or titled(name)


@styled
def _drawings_of_results(run: SavedRun) -> dict[str, tuple[Exhibit, Figure]]:
    """Results that can be drawn and that no figure of the run is of, by their names: drawn here, with their numbers."""
    saved = run.drawings()
    if saved and "figures" not in run.record:
        return {}  # an earlier version did not note what its figures are of
    seen = {name for noted in run.record.get("figures", {}).values() for name in noted["of"]}
    found = {}
    for name in run.kinds():
        if name in seen or name in saved or not hasattr(result := run.result(name), "plot"):
            continue
        figure = Figure(figsize=COLUMN)
        try:
            result.plot(ax=figure.subplots())
        except ValueError:  # there is nothing in it to draw, and its tables and findings say so
            continue
        table = frame_table(titled(name), result.to_frame(), f"results/{name}") if hasattr(result, "to_frame") else None
        text = f"{titled(name)}: {getattr(result, 'verdict', '') or type(result).__name__}."
        found[f"result_{name}"] = Exhibit(f"result_{name}", titled(name), text, [table] if table else []), figure
    return found


def _section(id: str, heading: str, intro: str, exhibits: list[Exhibit]) -> Section:
    return Section(id, heading, intro, exhibits)
