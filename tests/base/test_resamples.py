"""How sure a range is: shares and intervals over resamples, against counting by hand."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecircuits.base import resamples
from safecircuits.base.resamples import RangeResamples
from safecircuits.base.text import percent
from safecircuits.base.vocabulary import LayerRange

RANGES = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda ends: LayerRange(min(ends), max(ends)))


def test_the_example_is_true() -> None:
    assert doctest.testmod(resamples).failed == 0


@given(st.lists(st.none() | RANGES, min_size=1, max_size=60))
def test_intervals_hold_at_least_95_percent_of_what_is_named(draws: list[LayerRange | None]) -> None:
    found = RangeResamples(tuple(draws))
    named = [layers for layers in draws if layers is not None]
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.share(None) == pytest.approx(1 - len(named) / len(draws))
    if not named:
        assert found.bounds is None
        assert found.words(None) == "100 % of resamples"
        return
    assert found.bounds is not None
    for which, (low, high) in enumerate(found.bounds):
        ends = [tuple(layers)[which] for layers in named]
        assert {low, high} <= set(ends)
        assert sum(low <= end <= high for end in ends) >= 0.95 * len(ends)
    likeliest = next(iter(found.shares))
    assert found.share(likeliest) == found.shares[likeliest] == max(found.shares.values())


def test_a_range_that_every_resample_names_says_no_more() -> None:
    found = RangeResamples((LayerRange(3, 5),) * 4)
    assert found.words(LayerRange(3, 5)) == "100 % of resamples"
    assert found.record(LayerRange(3, 5)) == {"share": 1.0, "first": (3, 3), "last": (5, 5), "none": 0.0}


@given(st.lists(st.none() | RANGES, min_size=1, max_size=60).filter(any), RANGES)
def test_layers_that_most_resamples_do_not_name_are_called_a_guess(
    draws: list[LayerRange | None], layers: LayerRange
) -> None:
    found = RangeResamples(tuple(draws))
    doubt = found.doubt(layers)
    named = sum(one == layers for one in draws)
    assert bool(doubt) == (2 * named < len(draws))
    assert found.doubt(None) == ""
    assert not doubt or f"only {percent(named / len(draws))} of cases" in doubt
    assert found.bounds is not None
    for (low, high), said in zip(found.bounds, ("first layer", "last"), strict=True):
        assert (f"{said} {low} to {high}" in doubt) == (bool(doubt) and low < high)
