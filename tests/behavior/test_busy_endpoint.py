"""A server that is busy is asked again as it wishes, and no other; what it costs is bounded, and is said."""

from __future__ import annotations

import time
from typing import Any

import pytest
from test_endpoint import ANSWERS, QUESTION, Server, by_content, said, server

from safecircuits.base.errors import JudgingError
from safecircuits.behavior import Endpoint, JudgeDetector, verdicts
from safecircuits.behavior.retrying import BUSY, Patience

__all__ = ["server"]  # the fixture


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited for, and nothing is."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("status", BUSY)
def test_a_busy_server_is_asked_again_after_as_long_as_it_says(server: Server, waits: list[float], status: int) -> None:
    busy = (status, b"later", ("Retry-After", "7"))
    server.script = lambda i, body: busy if i in (1, 2) else by_content(i, body)
    judge = JudgeDetector(Endpoint(server.url, "m"), question=QUESTION, max_calls=3)
    assert verdicts(ANSWERS, judge).verdicts == ("complies", "refuses", "incoherent", "complies")
    assert waits == [7, 7]
    assert judge.replies.calls == 3  # of which each was answered, and one asked three times
    assert [body["messages"] for body in server.asked[1:4]] == [server.asked[1]["messages"]] * 3


def test_without_a_header_waits_grow_and_are_bounded(server: Server, waits: list[float]) -> None:
    server.script = lambda i, body: (503, b"starting") if i < 9 else (200, said("yes"))
    assert Endpoint(server.url, "m", retries=9)("a") == "yes"
    growing = [wait for wait in waits if wait]
    assert growing == [2.0**n for n in range(1, 7)] + [120, 120]
    assert Patience.of(1).backoff_max == 120


def test_a_server_that_stays_busy_is_left_alone(server: Server, waits: list[float]) -> None:
    server.script = lambda i, body: (429, b"quota", ("Retry-After", "1"))
    with pytest.raises(RuntimeError, match=r"answers 429 Too Many Requests \(3 times\), .*again after 1: quota"):
        Endpoint(server.url, "m", retries=2)("a")
    assert (len(server.asked), waits) == (3, [1, 1])
    with pytest.raises(RuntimeError, match=r"answers 429 Too Many Requests, to"):
        Endpoint(server.url, "m", retries=0)("a")
    assert len(server.asked) == 4


def test_what_was_judged_before_it_was_too_busy_is_kept(server: Server, waits: list[float], tmp_path: Any) -> None:
    path = tmp_path / "replies.jsonl"
    server.script = lambda i, body: by_content(i, body) if i < 2 else (429, b"", ("Retry-After", "86400"))
    with pytest.raises(JudgingError, match=r"completion 3: .* answers 429 .*after 86400") as error:
        verdicts(ANSWERS, JudgeDetector(Endpoint(server.url, "m"), question=QUESTION, keep=path))
    assert error.value.judged == ("no", "yes")
    assert (len(server.asked), waits) == (3, [])  # a day is not waited for
    server.script = by_content
    again = JudgeDetector(Endpoint(server.url, "m"), question=QUESTION, keep=path)
    assert verdicts(ANSWERS, again).verdicts == ("complies", "refuses", "incoherent", "complies")
    assert len(server.asked) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 500, 502, 504])
def test_others_are_not_asked_again(server: Server, waits: list[float], status: int) -> None:
    server.script = lambda i, body: (status, b"no", ("Retry-After", "1"))
    with pytest.raises(RuntimeError, match=f"answers {status} .*: no"):
        Endpoint(server.url, "m")("a")
    assert (len(server.asked), waits) == (1, [])


def test_headers_that_say_something_else(server: Server, waits: list[float]) -> None:
    server.script = lambda i, body: (429, b"", ("Retry-After", "soon")) if i == 0 else (200, said("yes"))
    assert Endpoint(server.url, "m")("a") == "yes"
    assert waits in ([], [0])


def test_texts_go_nowhere_else(server: Server) -> None:
    server.script = lambda i, body: (307, b"", ("Location", f"{server.url}/elsewhere"))
    with pytest.raises(RuntimeError, match="answers 307"):
        Endpoint(server.url, "m")("a")
    assert len(server.asked) == 1


def test_retries_are_a_number() -> None:
    with pytest.raises(ValueError, match="retries"):
        Endpoint("http://127.0.0.1:9", "m", retries=-1)
