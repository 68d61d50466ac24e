"""The numbers of each figure as a table of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safecircuits.base.record import RATES, Record, number
from safecircuits.base.text import layers, percent, plain, rate_with_interval
from safecircuits.plots.style import METRICS
from safecircuits.plots.units import SITE_NAMES


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    """Whether a page shows it only on request (and in print)."""


def behavior(record: Record) -> Table:
    names = _rates_in(record.values())
    rows = [[stage, *_cells(row, names)] for stage, row in record.items()]
    return Table("Rates with 95 % intervals, by model", ["model", *map(rate_name, names)], rows)


def gaps(stages: Mapping[str, Record]) -> Table:
    n_layers = max(len(row["gap_deg"]) for row in stages.values())
    rows = [[str(i), *(_at(row["gap_deg"], i, ".2f") for row in stages.values())] for i in range(n_layers)]
    return Table("Angle gap in degrees, by layer", ["layer", *stages], rows)


def sweeps(localization: Record) -> list[Table]:
    """One table a bound, laid out as in the paper, with intervals."""
    tables = []
    baseline = ["nothing", plain(localization.get("baseline_refused")), "–", "–"]
    for bound in ("upper", "lower"):
        rows = [
            [
                layers([row["first"], row["last"]]) + (" ★" if row.get("best") else ""),
                plain(row["refused"]),
                _change(row),
                percent(number(row.get("degenerate"))),
            ]
            for row in localization.get(bound) or []
        ]
        columns = ["scaled layers", "refused", "change [95 %]", "degenerate"]
        tables.append(Table(f"{bound.capitalize()} bound moves (★ extreme)", columns, [baseline, *rows]))
    return tables


def ablation(table: Record, control: Record) -> Table:
    names = _rates_in(table.values())
    rows = []
    for group, row in table.items():
        rows.append([group, plain(row.get("units", 0)), *_cells(row, names)])
        if random := control.get(group):
            rows.append([f"random, as many as {group}", plain(random.get("units")), *_cells(random, names)])
    return Table("Rates left, by what is removed", ["removed", "units", *map(rate_name, names)], rows)


def unit_map(per_layer: Record) -> Table:
    rows = [
        [f"{SITE_NAMES.get(site, site)} {group}", *map(plain, counts)]
        for site, groups in per_layer.items()
        for group, counts in groups.items()
    ]
    n_layers = max(len(row) for row in rows) - 1
    return Table("Units of each group, by layer", ["units", *map(str, range(n_layers))], rows)


def mapping(title: str, record: Record) -> Table:
    """Any mapping, one row an entry; entries that are mappings have a column for each of their keys."""
    entries = {str(name): value if isinstance(value, Mapping) else {"value": value} for name, value in record.items()}
    columns = list(dict.fromkeys(column for row in entries.values() for column in row))
    rows = [[name, *(plain(row.get(column)) for column in columns)] for name, row in entries.items()]
    return Table(title, ["name", *map(str, columns)], rows)


def rate_name(name: str) -> str:
    """``malicious_refused`` as a column is headed."""
    return METRICS[name].label


def _rates_in(rows: Any) -> list[str]:
    present: set[str] = set().union(*rows)
    return [name for name in RATES if name in present]


def _cells(row: Record, names: Sequence[str]) -> Iterator[str]:
    return (rate_with_interval(row, name) for name in names)


def _change(row: Record) -> str:
    low, high, change = (number(row.get(key)) for key in ("change_low", "change_high", "change"))
    text = "–" if change is None else _minus(f"{change:+g}")
    return text if low is None or high is None else _minus(f"{text} [{low:+.1f}, {high:+.1f}]")


def _at(values: Any, i: int, form: str) -> str:
    return _minus(format(values[i], form)) if values and i < len(values) else "–"


def _minus(number: str) -> str:
    return number.replace("-", "−")
