"""The second half of the support table is what is found here, and can be otherwise."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version

import pytest

import support_ways

COMMITTED = support_ways.committed()
HERE = version("transformer-lens") == support_ways.measured_with()


def statuses(cells: list[support_ways.Cell], row: str) -> dict[str, str]:
    """By check; whether 4-bit kernels have a gradient depends on the processor."""
    found = {cell.check: cell.status for cell in cells if cell.row == row}
    return found | ({"scores by gradients": ""} if row.startswith("4 bits") else {})


@pytest.mark.skipif(not HERE, reason="the table was made with another transformer-lens")
@pytest.mark.parametrize("row", ["Mixtral", "gpt-oss", "Mamba", "LFM2"])
def test_the_committed_cells_are_what_is_found(row: str) -> None:
    assert statuses(list(support_ways.family(row)), row) == statuses(COMMITTED, row)


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="the table was made with another transformer-lens")
@pytest.mark.parametrize(
    "row", [row for row in (*support_ways.FAMILIES, *support_ways.WAYS) if row not in ("Mixtral", "gpt-oss", "Mamba")]
)
def test_so_are_all_others(row: str) -> None:
    assert statuses(support_ways.examine((row,)), row) == statuses(COMMITTED, row)


def test_every_row_is_there_and_none_fails() -> None:
    for row in (*support_ways.FAMILIES, *support_ways.WAYS):
        checks = support_ways.FAMILY_CHECKS if row in support_ways.FAMILIES else support_ways.WAY_CHECKS
        assert set(statuses(COMMITTED, row)) == set(checks), row
    assert all(cell.status != "fail" for cell in COMMITTED)
    assert all(cell.note for cell in COMMITTED if cell.status == "refused")


def test_a_wrong_result_is_no_ok() -> None:
    assert support_ways.found("way", "x", "y", lambda: 0.1).status == "fail"
    assert support_ways.found("way", "x", "y", lambda: float("nan")).status == "fail"
    assert support_ways.found("way", "x", "y", lambda: 1e-6).status == "ok"


def test_the_page_says_what_the_cells_say() -> None:
    changed = [replace(COMMITTED[0], status="fail", note="something"), *COMMITTED[1:]]
    assert support_ways.rendered(changed, "3.9.0") != support_ways.rendered(COMMITTED, "3.9.0")
