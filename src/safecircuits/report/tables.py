"""The numbers of each figure as a table of text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from safecircuits.base.counted import HEADING, Beside, cells, headings, linked
from safecircuits.base.record import RATES, Record, number
from safecircuits.base.text import layers, plain, rate_with_interval
from safecircuits.plots.style import METRICS
from safecircuits.plots.units import SITE_NAMES
from safecircuits.report.kl_columns import ORDINARY, kl_cells, kl_headings, ordinary_kl


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    """Whether a page shows it only on request (and in print)."""


def sortable(table: Table) -> list[list[tuple[str, float | None]]]:
    """The cells of each row, and beside each its number to sort by, where its column is one of numbers in words."""
    of_numbers = list(map(_in_words, zip(*table.rows, strict=True)))
    return [
        [
            (cell, (_LAST if (found := leading_number(cell)) is None else found) if numbers else None)
            for cell, numbers in zip(row, of_numbers, strict=True)
        ]
        for row in table.rows
    ]


def worded(table: Table) -> list[bool]:
    """Which columns hold words and no numbers; the first, which names its rows, is none of them."""
    texts = [[cell for cell in column if cell not in _MISSING] for column in zip(*table.rows, strict=True)]
    words = [bool(column) and all(leading_number(cell) is None for cell in column) for column in texts]
    return [False, *words[1:]] if words else [False] * len(table.columns)


def _in_words(column: Sequence[str]) -> bool:
    """Whether all its cells begin with a number or miss one, and are not plain numbers anyway."""
    found = [leading_number(cell) for cell in column]
    known = all(one is not None or cell in _MISSING for one, cell in zip(found, column, strict=True))
    return known and any(one is not None and cell != f"{one:g}" for one, cell in zip(found, column, strict=True))


_MISSING = ("", "–", "none", "none found")
_LAST = -1e300
"""Where a cell without a number goes among numbers."""


def leading_number(cell: str) -> float | None:
    """The number that a cell begins with, ``−3.2`` of ``−3.2 % [−4, −1]``; None if it begins with none."""
    found = re.match(r"\s*[+−-]?(?:\d+(?:[ \u00a0,]\d{3})*)?(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])", cell)
    text = re.sub(r"[ \u00a0,]", "", found[0]).replace("−", "-") if found else ""
    return float(text) if any(sign.isdigit() for sign in text) else None


def behavior(record: Record) -> Table:
    names = _rates_in(record.values())
    all_of = list(record.values())
    rows = [[stage, *rate_cells(row, all_of, names), *kl_cells(row, all_of)] for stage, row in record.items()]
    columns = ["model", *rate_headings(all_of, names), *kl_headings(all_of)]
    return Table("Rates with 95 % intervals, by model", columns, rows)


def gaps(stages: Mapping[str, Record]) -> Table:
    n_layers = max(len(row["gap_deg"]) for row in stages.values())
    rows = [[str(i), *(_at(row["gap_deg"], i, ".2f") for row in stages.values())] for i in range(n_layers)]
    return Table("Angle gap in degrees, by layer", ["layer", *stages], rows)


def sweeps(localization: Record) -> list[Table]:
    """One table a bound, laid out as in the paper, with intervals."""
    tables = []
    unscaled = linked(plain(localization.get("baseline_refused")), localization, "refused")
    baseline = ["nothing", unscaled, "–", Beside.of(localization, "refused").cell]
    for bound in ("upper", "lower"):
        far = ordinary_kl(localization.get(bound) or [])
        rows = [
            [
                layers([row["first"], row["last"]]) + (" ★" if row.get("best") else ""),
                linked(plain(row["refused"]), row, "refused"),
                _change(row),
                Beside.of(row, "refused").cell,
                *([moved] if far else []),
            ]
            for row, moved in zip(localization.get(bound) or [], far or repeat(""), strict=False)
        ]
        columns = ["scaled layers", "refused", "change [95 %]", HEADING, *([ORDINARY] if far else [])]
        unchanged = [*baseline, "–"] if far else baseline
        tables.append(Table(f"{bound.capitalize()} bound moves (★ extreme)", columns, [unchanged, *rows]))
    return tables


def ablation(table: Record, control: Record) -> Table:
    names, all_of = _rates_in(table.values()), [*table.values(), *control.values()]
    rows = []
    for group, row in table.items():
        rows.append([group, plain(row.get("units", 0)), *rate_cells(row, all_of, names), *kl_cells(row, all_of)])
        if random := control.get(group):
            shown = [plain(random.get("units")), *rate_cells(random, all_of, names), *kl_cells(random, all_of)]
            rows.append([f"random, as many as {group}", *shown])
    columns = ["removed", "units", *rate_headings(all_of, names), *kl_headings(all_of)]
    return Table("Rates left, by what is removed", columns, rows)


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


def rate_headings(rows: Sequence[Record], names: Sequence[str]) -> list[str]:
    """The columns of rates, and behind each count of refusals of how many answers it is (``counted.HEADING``)."""
    return headings(rows, names, [rate_name(name) for name in names])


def rate_cells(row: Record, rows: Sequence[Record], names: Sequence[str]) -> list[str]:
    """The rates of a record under ``rate_headings``."""
    return cells(row, rows, names, [rate_with_interval(row, name) for name in names])


def _change(row: Record) -> str:
    low, high, change = (number(row.get(key)) for key in ("change_low", "change_high", "change"))
    text = "–" if change is None else _minus(f"{change:+g}")
    return text if low is None or high is None else _minus(f"{text} [{low:+.1f}, {high:+.1f}]")


def _at(values: Any, i: int, form: str) -> str:
    return _minus(format(values[i], form)) if values and i < len(values) else "–"


def _minus(number: str) -> str:
    return number.replace("-", "−")
