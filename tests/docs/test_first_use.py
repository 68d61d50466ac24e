"""The page on what a new user waits for says what the committed numbers say, and its commands measure."""

from __future__ import annotations

import json

import pytest
from benchmarks.performance import first_use


def test_the_page_is_the_rendering_of_the_numbers() -> None:
    found = json.loads(first_use.DATA.read_text(encoding="utf-8"))
    assert first_use.PAGE.read_text(encoding="utf-8") == first_use.render(found)
    assert set(found["helps"]) == set(first_use.HELP)


def test_an_aim_that_is_missed_is_said() -> None:
    found = json.loads(first_use.DATA.read_text(encoding="utf-8"))
    found["helps"]["safecircuits --help"] = 0.41
    assert "**missed** (the slowest here takes 0." in first_use.render(found)
    quick = dict.fromkeys(found["helps"], 0.3)
    page = first_use.render(found | {"helps": quick, "reports": {"study": 3_100_000}})
    assert "for every help: met" in page
    assert "The aim is 3 MB: **missed**." in page


def test_processor_time_is_measured_and_a_failure_ends_it() -> None:
    idle = first_use.processor_seconds("-c pass")
    busy = first_use.processor_seconds("-c 'sum(range(10_000_000))'")
    assert 0 < idle < busy
    with pytest.raises(SystemExit, match="failed"):
        first_use.processor_seconds("-c 'raise ValueError'")
