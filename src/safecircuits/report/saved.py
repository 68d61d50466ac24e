"""Complete runs as they lie on disk: their record, tables, figures and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecircuits.base.counted import Linked
from safecircuits.base.reading import inside, read_json, read_text, require_size
from safecircuits.base.text import plain
from safecircuits.report.tables import Table
from safecircuits.results.load_record import load_run
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd

LARGEST_FIGURE = 2**25
"""Bytes of a figure that a page takes in."""

ROWS = 200
"""Rows of a table that a page shows; longer ones say where the rest is."""


@dataclass(frozen=True)
class SavedRun:
    """A complete run, and the name by which a page speaks of it.

    Examples:
        >>> run = sc.report.SavedRun.open("runs/gap")  # doctest: +SKIP
        >>> run.tables()["gap"], run.result("comparison")  # doctest: +SKIP
    """

    folder: Path
    name: str
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path, name: str | None = None) -> SavedRun:
        """Read a run's record.

        Raises:
            ValueError: if the folder holds no run, one that is not complete, or one of another version.
        """
        path = Path(folder)
        return cls(path, name or path.resolve().name, load_run(path))

    @property
    def command(self) -> str:
        """Without the program's name: ``layers similarity``."""
        return str(self.record["command"])

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name, the main one first."""
        import pandas as pd

        main = str(self.record.get("main_table") or "")
        paths = sorted((self.folder / "tables").glob("*.csv"), key=lambda path: (not main.endswith(path.name), path))
        found = {}
        for path in map(self._own, paths):
            try:
                found[path.stem] = pd.read_csv(require_size(path))
            except pd.errors.EmptyDataError:
                continue  # a table without columns has nothing to show
            except (pd.errors.ParserError, UnicodeDecodeError) as error:
                raise ValueError(f"{str(path)!r} is not a readable table: {' '.join(str(error).split())}") from error
        return found

    def drawings(self) -> dict[str, str]:
        """The text of every SVG figure by name."""
        paths = sorted((self.folder / "figures").glob("*.svg"))
        return {path.stem: read_text(self._own(path), LARGEST_FIGURE) for path in paths}

    def result(self, name: str) -> Result:
        """A result by name; a ValueError if it is of another version."""
        return Result.load(inside(self.folder / "results", name))

    def kinds(self) -> dict[str, str]:
        """Class names of the results, by name."""
        found = {}
        for path in sorted((self.folder / "results").glob("*/result.json")):
            try:
                found[path.parent.name] = str(read_json(self._own(path))["result"]["$class"])
            except (KeyError, TypeError) as error:
                raise ValueError(f"{str(path)!r} is not the record of a result") from error
        return found

    def _own(self, path: Path) -> Path:
        """A file of the run; a ValueError if it is a link to one that is not, as a folder from elsewhere may hold."""
        return inside(self.folder, path.relative_to(self.folder).as_posix())


def open_runs(folders: Sequence[str | Path]) -> list[SavedRun]:
    """Several runs of one command, named by as much of their paths as tells them apart.

    Raises:
        ValueError: as ``SavedRun.open`` does; for one folder twice; for runs of different commands.

    Examples:
        >>> runs = sc.report.open_runs(["runs/one", "runs/other"])  # doctest: +SKIP
    """
    paths = [Path(folder).resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{str(path)!r} is given twice; a run is compared with another one")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    runs = [SavedRun.open(path, "/".join(path.parts[-depth:])) for path in paths]
    first = runs[0]
    for run in runs[1:]:
        if run.command != first.command:
            raise ValueError(
                f"runs of one command can be compared: {first.name!r} is of {first.command!r}, {run.name!r} of "
                f"{run.command!r}"
            )
    return runs


def frame_table(title: str, frame: pd.DataFrame, where: str = "") -> Table:
    """A table of data as a page shows it.

    Args:
        where: all rows are found, if there are more than ``ROWS``.
    """
    shown = frame.head(ROWS)
    if len(frame) > ROWS:
        title += f" (the first {ROWS} of {len(frame)} rows; all are in {where})"
    columns = [str(c) for c in frame]
    rows = [[_cell(name, v) for name, v in zip(columns, row, strict=True)] for row in shown.itertuples(index=False)]
    return Table(title, columns, rows)


def _cell(column: str, value: Any) -> str:
    """Where a column names answers, a cell leads to them."""
    names = isinstance(value, str) and (column == "answers" or column.endswith("_answers"))
    return Linked("see", value) if names else cell(value)


def cell(value: Any) -> str:
    """A value of a data frame as text; – for a missing one."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e5 else plain(value)


def titled(name: str) -> str:
    """A file's name as words: ``sweeps_0`` becomes ``Sweeps 0``."""
    return name.replace("_", " ").strip().capitalize()
