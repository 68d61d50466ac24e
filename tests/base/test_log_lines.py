"""What a job says of its progress where nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from safecircuits.base import log_lines, progress
from safecircuits.base.log_lines import LogLines, duration


class Clock:
    """A clock that stands still until it is told to go on."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found, lines = Clock(), LogLines()
    monkeypatch.setattr(log_lines, "time", found)
    monkeypatch.setattr(log_lines, "EVERY", 60.0)
    monkeypatch.setattr(progress, "time", found)
    monkeypatch.setattr(progress, "lines", lines)
    return found


def spend(clock: Clock, items: Iterator[int], seconds: float) -> None:
    for _ in items:
        clock.now += seconds


def test_a_line_a_minute_with_what_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    spend(clock, progress.track(range(9), "scoring"), 25)
    assert capsys.readouterr().err.splitlines() == [
        "scoring 3 of 9, 75 s, about 2 min left",
        "scoring 6 of 9, 2 min, about 75 s left",
    ]


def test_short_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    spend(clock, progress.track(range(50), "scoring"), 1)
    clock.now += 3600
    spend(clock, progress.track(range(9), "scoring"), 1)
    assert capsys.readouterr().err == ""
    spend(clock, progress.track(range(50), "scoring"), 1)
    assert capsys.readouterr().err.splitlines() == ["scoring 1 of 50, 1 s, about 49 s left"]
    spend(clock, progress.track(range(500), "scoring", enabled=False), 1)
    assert capsys.readouterr().err == ""


def test_many_short_works_within_a_long_one(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("fine-tuning study")
    for _ in progress.track(range(4), "arms"):
        spend(clock, progress.track(range(2), "steps"), 20)
    assert capsys.readouterr().err.splitlines() == [
        "fine-tuning study; arms 1 of 4, 60 s, about 3 min left; steps 1 of 2, 20 s, about 20 s left",
        "fine-tuning study; arms 3 of 4, 2 min, about 40 s left",
    ]


def test_work_that_fails_is_over(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        spend(clock, progress.track(failing(), "first"), 100)
    capsys.readouterr()
    spend(clock, progress.track(range(2), "second"), 61)
    assert capsys.readouterr().err.splitlines() == ["second 0 of 2, 0 s", "second 1 of 2, 61 s, about 61 s left"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5880, "98 min"), (6000, "1 h 40 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_command_that_builds_says_how_far_it_is(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safecircuits.cli.organism import _steps

    monkeypatch.setattr(log_lines, "lines", progress.lines)
    with _steps() as step:
        tell: Callable[[str, int, int], None] = step
        for what in ("base", "aligned"):
            for done in range(3):
                tell(what, done, 3)
                clock.now += 45
    assert capsys.readouterr().err.splitlines() == [
        "base 2 of 3, 90 s, about 45 s left",
        "aligned 1 of 3, 45 s, about 90 s left",
    ]
