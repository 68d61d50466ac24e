"""Runs of one command held against each other: settings that differ, and the numbers of their tables side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safecircuits.report.saved import SavedRun
from safecircuits.results.load_record import run_provenance

if TYPE_CHECKING:
    import pandas as pd

# Whole numbers and words that say which row this is. Where they are not enough, further columns of words are taken.
KEYS = (
    *("model", "arm", "scenario", "set", "bound", "site", "group", "measure", "what", "name", "detector", "a", "b"),
    *("seed", "layer", "first", "last", "unit", "step", "removed", "position", "token", "at", "effect"),
)


@dataclass(frozen=True)
class ComparedTable:
    """One table of all runs.

    Attributes:
        name: of the table's file.
        frame: the columns that name a row, then for each column that differs anywhere a column a run, and for
            numbers the difference of each further run from the first: ``rate [a]``, ``rate [b]``, ``rate [b − a]``.
        keys: the columns that name a row.
        differing: columns that differ anywhere.
        same: columns in which all runs agree, row by row.
    """

    name: str
    frame: pd.DataFrame
    keys: tuple[str, ...]
    differing: tuple[str, ...]
    same: tuple[str, ...]


@dataclass(frozen=True)
class RunComparison:
    """Several complete runs of one command.

    Attributes:
        settings: values by run, of the arguments and inputs that differ.
        tables: those that all runs have.
    """

    runs: tuple[SavedRun, ...]
    settings: dict[str, dict[str, Any]]
    tables: tuple[ComparedTable, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        import json

        return {
            "command": self.runs[0].command,
            "runs": {run.name: run_provenance(run.record) for run in self.runs},
            "findings": {run.name: list(run.record.get("findings") or []) for run in self.runs},
            "settings": self.settings,
            "tables": {
                table.name: {"same": list(table.same), "rows": json.loads(table.frame.to_json(orient="records"))}
                for table in self.tables
            },
        }


def compare_runs(runs: Sequence[SavedRun]) -> RunComparison:
    """Compare runs, of one command, with the first of them."""
    tables = [run.tables() for run in runs]
    names = [name for name in tables[0] if all(name in found for found in tables)]
    by_name = {name: {r.name: found[name] for r, found in zip(runs, tables, strict=True)} for name in names}
    compared = tuple(compared_table(name, frames) for name, frames in by_name.items())
    return RunComparison(tuple(runs), _settings(runs), compared)


def compared_table(name: str, frames: Mapping[str, pd.DataFrame]) -> ComparedTable:
    """The tables of several runs, by run, joined by the columns that name a row."""
    import pandas as pd

    columns = [str(c) for c in next(iter(frames.values())) if all(c in frame for frame in frames.values())]
    labels = _labels(columns, list(frames.values()))
    columns = [column for column in columns if column not in labels]
    keys = _keys(columns, list(frames.values()))
    indexed = {run: _indexed(frame[columns], keys) for run, frame in frames.items()}
    order = list(dict.fromkeys(key for frame in indexed.values() for key in frame.index))
    values = [column for column in columns if column not in keys]
    joined = pd.DataFrame(order, columns=[*keys, "row"])
    differing, same = [], []
    for column in values:
        by_run = {run: frame[column].reindex(order).reset_index(drop=True) for run, frame in indexed.items()}
        first, *others = by_run.values()
        if all(_equal(first, other) for other in others):
            if not first.isna().all():
                same.append(column)
            continue
        differing.append(column)
        numbers = all(pd.api.types.is_numeric_dtype(one) and one.dtype != bool for one in by_run.values())
        origin = next(iter(by_run))
        for run, one in by_run.items():
            joined[f"{column} [{run}]"] = one
            if numbers and run != origin:
                joined[f"{column} [{run} − {origin}]"] = one - first
    if joined["row"].eq(0).all() and keys:
        joined = joined.drop(columns="row")
    else:
        keys = [*keys, "row"]
        joined = joined[[*keys, *(column for column in joined if column not in keys)]]
    return ComparedTable(name, joined, tuple(keys), tuple(differing), tuple(same))


def _words(columns: Sequence[str], frames: Sequence[pd.DataFrame]) -> list[str]:
    """The columns that hold no numbers."""
    import pandas as pd

    return [c for c in columns if all(not pd.api.types.is_numeric_dtype(frame[c]) for frame in frames)]


def _labels(columns: Sequence[str], frames: Sequence[pd.DataFrame]) -> list[str]:
    """Columns with one word in each run and another one in another run: they name the run, and not the row."""

    def several(column: str) -> bool:
        return len({value for frame in frames for value in frame[column].dropna().unique()}) > 1

    return [c for c in _words(columns, frames) if all(frame[c].nunique() <= 1 for frame in frames) and several(c)]


def _keys(columns: Sequence[str], frames: Sequence[pd.DataFrame]) -> list[str]:
    """The columns that tell rows apart and may be expected to be the same in all runs."""
    keys = [column for column in columns if column in KEYS]
    for column in _words(columns, frames):
        if keys and not any(frame.duplicated(keys).any() for frame in frames):
            break
        if column not in keys:
            keys.append(column)
    return keys


def _indexed(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """With the key columns, and a number where they are not enough, as index."""
    frame = frame.copy()
    for key in keys:
        if frame[key].isna().any():
            frame[key] = frame[key].map(lambda value: "–" if value != value else _whole(value))
    frame["row"] = frame.groupby(list(keys)).cumcount() if keys else range(len(frame))
    return frame.set_index([*keys, "row"])


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _equal(a: pd.Series[Any], b: pd.Series[Any]) -> bool:
    return bool(((a == b) | (a.isna() & b.isna())).all())


def _settings(runs: Sequence[SavedRun]) -> dict[str, dict[str, Any]]:
    """Arguments, then inputs, that are not the same in all runs."""
    rows = [{**run.record["arguments"], **_inputs(run.record["inputs"])} for run in runs]
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: {run.name: row.get(name) for run, row in zip(runs, rows, strict=True)}
        for name in names
        if any(row.get(name) != rows[0].get(name) for row in rows[1:])
    }


def _inputs(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints, under names that no argument has; models together, since their names are what differs."""
    found: dict[str, str] = {}
    for name, value in inputs.items():
        digest = value.get("sha", value) if isinstance(value, Mapping) else value
        kind = "contents of models" if name.startswith("model ") else f"contents of {name}"
        found[kind] = f"{found[kind]}, {digest}" if kind in found else str(digest)
    return found
