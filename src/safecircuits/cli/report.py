"""``safecircuits report``: the page of a run again from what it saved, or several runs held against each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.frame import plain_command
from safecircuits.cli.options import JsonOption

if TYPE_CHECKING:
    from safecircuits.report.compare_runs import RunComparison
    from safecircuits.report.saved import SavedRun


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    plain_command(app)(report)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of complete runs: one, or several of one command.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="HTML file to write; RUN/report.html, or comparison.html of several runs, unless given."
        ),
    ] = None,
    with_completions: Annotated[
        bool,
        typer.Option(
            "--with-completions",
            help="Include prompts and answers of harmful sets, folded; leave them out of a page that you pass on.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make the report of a run again from its saved results; or compare several runs side by side.

    Example: safecircuits report runs/gap runs/gap-base --out comparison.html
    """
    from safecircuits.base.files import write_text
    from safecircuits.base.outputs import require_replaceable
    from safecircuits.base.reading import printable

    if out is not None:
        require_replaceable(out, "report")
    with _of_others(runs):
        html, path, data, lines = (
            _one(runs[0], out, with_completions) if len(runs) == 1 else _several(runs, out, with_completions)
        )
    if not _is_own_page(runs, path):
        require_replaceable(path, "report")
    write_text(path, html)
    if json:
        from json import dumps

        typer.echo(dumps(data, indent=1, ensure_ascii=False))
    else:
        for line in lines:
            typer.echo(printable(line))
    typer.echo(f"wrote {path}", err=True)


def _is_own_page(runs: list[Path], path: Path) -> bool:
    """Whether it is the page that the run itself wrote, by its record, whatever an earlier version made of it."""
    from safecircuits.results.load_record import load_run
    from safecircuits.results.run_record import REPORT

    return path == runs[0] / REPORT and REPORT in load_run(runs[0])["files"]


@contextmanager
def _of_others(runs: list[Path]) -> Iterator[None]:
    """One line, too, for files of a run that are readable one by one and are not what safecircuits writes together."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, AssertionError, RecursionError, ArithmeticError) as error:
        raise ValueError(
            f"{' or '.join(repr(str(run)) for run in runs)} holds something else than safecircuits writes into a run: "
            f"{type(error).__name__}: {error}"
        ) from error


def _one(folder: Path, out: Path | None, texts: bool) -> tuple[str, Path, Any, list[str]]:
    from safecircuits.papers.part import Subject
    from safecircuits.report.run_pages import run_page
    from safecircuits.report.saved import SavedRun
    from safecircuits.results.load_record import run_provenance
    from safecircuits.results.run_record import REPORT

    run = SavedRun.open(folder)
    if "subject" in run.kinds() and isinstance(subject := run.result("subject"), Subject):
        html, _ = subject.study(folder).page(run_provenance(run.record), with_completions=texts)
    elif out is None and REPORT in run.record["files"]:
        raise ValueError(
            f"{str(folder / REPORT)!r} is the page that the run made itself, which holds more than its results say; "
            "give --out for one made of these"
        )
    else:
        html = run_page(run, with_completions=texts)
    findings = list(run.record.get("findings") or [])
    return html, out or folder / REPORT, _data(run), findings


def _data(run: SavedRun) -> dict[str, Any]:
    from json import loads

    from safecircuits.results.load_record import run_provenance

    tables = {name: loads(frame.to_json(orient="records")) for name, frame in run.tables().items()}
    findings = list(run.record.get("findings") or [])
    return {"findings": findings, "tables": tables, "provenance": run_provenance(run.record)}


def _several(folders: list[Path], out: Path | None, texts: bool) -> tuple[str, Path, Any, list[str]]:
    from safecircuits.report.compare_page import compare_page
    from safecircuits.report.compare_runs import compare_runs
    from safecircuits.report.saved import open_runs

    compared = compare_runs(open_runs(folders))
    return (
        compare_page(compared, with_completions=texts),
        out or Path("comparison.html"),
        compared.to_json(),
        _differences(compared),
    )


def _typed(value: Any) -> str:
    """A setting as it was typed."""
    return "–" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _differences(compared: RunComparison) -> list[str]:
    """Settings that differ, and where numbers do."""
    lines = []
    for name, values in compared.settings.items():
        listed = ", ".join(f"{run}: {_typed(value)}" for run, value in values.items())
        lines.append(f"{name.replace('_', ' ')}  {listed}")
    for table in compared.tables:
        what = ", ".join(table.differing) or "nothing"
        lines.append(f"tables/{table.name}.csv  differs in {what}")
    return lines
