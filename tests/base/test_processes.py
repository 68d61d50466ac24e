"""Who a process is, by what its launcher says; tests/distributed has launched ones."""

from __future__ import annotations

import pytest

from safecircuits.base.processes import alone, broadcast, gather, is_main, of_main, rank, size, that_travels


@pytest.mark.parametrize(
    ("told", "launched", "number", "main"),
    [
        ({}, 1, 0, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1, 0, True),
        ({"WORLD_SIZE": "3", "RANK": "0"}, 3, 0, True),
        ({"WORLD_SIZE": "3", "RANK": "2"}, 3, 2, False),
        ({"RANK": "2"}, 1, 0, True),  # somebody else's variable: nobody would print
        ({"WORLD_SIZE": "3"}, 1, 0, True),  # no launcher says which one this is
    ],
    ids=str,
)
def test_who_this_is(
    told: dict[str, str], launched: int, number: int, main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert (size(), rank(), is_main()) == (launched, number, main)
    with alone(), alone():
        assert (size(), rank(), is_main()) == (1, 0, main)
    assert size() == launched


def test_one_process_exchanges_nothing() -> None:
    value = object()  # which could not be sent
    assert gather(value) == [value]
    assert broadcast(value) is value
    assert of_main(lambda: value) is value
    with pytest.raises(ZeroDivisionError):
        of_main(lambda: 1 / 0)


class _Odd(ValueError):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def test_an_error_that_cannot_be_sent_still_says_what_it_said() -> None:
    assert that_travels(plain := ValueError("plain")) is plain
    assert str(that_travels(_Odd(1, 2))) == "_Odd: 1 and 2"
