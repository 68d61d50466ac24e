"""Every command that counts refusals takes a judge, and whatever a judge's server does wrong is one clear line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_endpoint import Server, said, server

from commands import refuse, run, succeed
from safecircuits.behavior import JudgeDetector

__all__ = ["server"]  # the fixture

MODEL = ["--model", "organism:aligned"]
ASKED = ["--malicious", "organism:malicious"]
TOKENS = ["--max-new-tokens", 8]
COMMANDS: dict[str, list[Any]] = {
    "evaluate": ["evaluate", *MODEL, *ASKED, "--n", 4, *TOKENS],
    "audit": ["audit", "organism:aligned", "organism:unaligned", *ASKED, "--n", 8, *TOKENS],
    "decide": ["layers", "decide", *MODEL, *ASKED, "--normal", "organism:normal", "--n", 4, *TOKENS],
    "localize": [
        *("layers", "localize", *MODEL, "--over-rejection", "organism:over_rejection", "--n", 4, "--start", "3,5"),
        *("--alpha", 1.2, "--reach", 1, *TOKENS),
    ],
    "grid": [
        *("layers", "grid", *MODEL, "--over-rejection", "organism:over_rejection", "--n", 4, "--max-length", 1),
        *("--alpha", 2.0, *TOKENS),
    ],
    "transplant": [
        *("layers", "transplant", "--model", "organism:base", "--source", "organism:aligned", "--block", "3,5"),
        *(*ASKED, "--n", 4, *TOKENS),
    ],
    "probe": [
        *("probe", *MODEL, *ASKED, "--n", 4, "--steps", "2", "--benign-suffix", "i cannot"),
        *("--malicious-suffix", "take the", *TOKENS),
    ],
    "direction find": [
        *("direction", "find", *MODEL, *ASKED, "--normal", "organism:normal", "--n", 12, "--controls", 0),
    ],
    "attack": [
        *("study", "attack", *MODEL, *ASKED, "--n", 4, "--seeds", 1, "--stops", 1, "--batch-size", 4),
        *("--arm", "nothing", "--family", "harmless data", "--lr", 1e-3, *TOKENS),
    ],
    "landscape": [
        *("study", "landscape", *MODEL, *ASKED, "--n", 4, "--at", "0.1", "--draws", 1, "--visage", 0),
        *("--freeze-layers", "3,3", *TOKENS),
    ],
}


def asked_of(server: Server, *more: Any) -> list[Any]:
    return ["--judge", "question", "--judge-url", server.url, "--judge-model", "m", *more]


def by_words(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
    """What a judge would say of the embedded model's answers."""
    reply = body["messages"][0]["content"].split("Reply:\n")[1]
    return 200, said("yes" if "cannot" in reply else "no")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_that_fails_midway_costs_nothing_twice(server: Server, command: str, tmp_path: Path) -> None:
    arguments = [*COMMANDS[command], *asked_of(server), "--out", tmp_path / "run"]
    server.script = lambda i, body: (500, b"out of memory") if i == 2 else by_words(i, body)
    failed = run(*arguments)
    assert failed.exit_code == 2, failed.output
    last = failed.stderr.splitlines()[-1]
    assert "the judge failed on completion" in last
    assert "500" in last
    assert "out of memory" in last
    server.script = by_words
    done = run(*arguments)
    assert done.exit_code == (1 if command == "audit" else 0), done.output
    assert "goes on with the interrupted run" in done.stderr
    questions = [body["messages"][0]["content"] for body in server.asked]
    assert len(questions) == len(set(questions)) + 1  # the one that failed
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["arguments"]["judge"] == "question"
    assert not list((tmp_path / "run").rglob("judge_replies*"))


def test_what_stands_on_an_earlier_run_takes_a_judge_too(server: Server, tmp_path: Path) -> None:
    server.script = by_words
    units, direction = tmp_path / "units", tmp_path / "direction"
    known = ["--utility", "organism:utility", "--n", 4]
    succeed("units", "classify", *MODEL, "--safety", "organism:malicious", *known, "--scu", 0.01, "--out", units)
    many = ["--malicious", "organism:malicious", "--normal", "organism:normal", "--n", 12, "--controls", 0]
    many += ["--rule", "bypass", "--ablation", "affine"]
    succeed("direction", "find", *MODEL, *many, "--out", direction)
    short = [*ASKED, "--n", 4, *TOKENS, *asked_of(server)]
    for command in (
        ["units", "ablate", "--groups", units, "--group", "SCU", "--controls", 1],
        ["units", "prune", "--groups", units, "--group", "SCU"],
        ["direction", "evaluate", "--direction", direction, "--controls", 1],
        ["direction", "export", "--direction", direction],
    ):
        before = len(server.asked)
        succeed(*command, *MODEL, *short, "--out", tmp_path / command[1])
        assert len(server.asked) > before, command
    refuse("direction", "export", *MODEL, "--direction", direction, *asked_of(server), "--out", tmp_path / "x")


def test_a_limit_on_calls_ends_a_search_and_a_higher_one_goes_on(server: Server, tmp_path: Path) -> None:
    server.script = by_words
    arguments = [*COMMANDS["grid"], "--out", tmp_path / "run"]
    refuse(*arguments, *asked_of(server, "--judge-calls", 5))
    assert len(server.asked) == 5
    succeed(*arguments, *asked_of(server, "--judge-calls", 500))
    questions = [body["messages"][0]["content"] for body in server.asked]
    assert len(questions) == len(set(questions))


def slow(i: int, body: dict[str, Any]) -> tuple[int, bytes]:
    time.sleep(1.0)
    return by_words(i, body)


FAULTS: dict[str, tuple[Callable[[int, Any], tuple[int, bytes]], list[Any], str]] = {
    "another format": (lambda i, body: (200, said("Verdict: 3/5")), [], "begins with neither ('yes'"),
    "refuses to judge": (lambda i, body: (200, said("I can't help with that.")), [], "I can't help with that."),
    "says nothing": (lambda i, body: (200, said("")), [], "the reply '' begins with neither"),
    "no text": (lambda i, body: (200, said(None)), [], "replies with no text"),
    "no JSON": (lambda i, body: (200, b"<html>busy</html>"), [], "replies with something that is no JSON"),
    "another API": (lambda i, body: (200, b'{"output": "yes"}'), [], "replies without choices[0].message.content"),
    "no such place": (lambda i, body: (404, b"no route"), [], "answers 404"),
    "too slow": (slow, ["--judge-timeout", 0.2], "gives no reply within 0.2 s"),
    "too dear": (by_words, ["--judge-calls", 1], "asked 1 times, which is all that max_calls allows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_that_names_the_completion(server: Server, fault: str, tmp_path: Path) -> None:
    server.script, more, message = FAULTS[fault]
    arguments = ["evaluate", *MODEL, *ASKED, "--n", 2, "--max-new-tokens", 4, *asked_of(server, *more)]
    line = refuse(*arguments, "--out", tmp_path / "run")
    assert "the judge failed on completion" in line
    assert message in line


def test_replies_in_another_format_may_be_left_undecided(server: Server, tmp_path: Path) -> None:
    server.script = lambda i, body: (200, said("I can't help with that."))
    arguments = [*COMMANDS["evaluate"], *asked_of(server, "--judge-undecided"), "--out", tmp_path / "run"]
    got = succeed(*arguments)
    assert "4 of the judge's 4 replies are in another format" in got.stderr
    assert "0.0 % [0.0, 49.0] (0/4) (0 incoherent, 0 deflect, 4 undecided" in got.stdout


class Stopped(Exception):
    """Where the study would begin."""


@pytest.mark.parametrize("name", ["safety_layers", "ssah"])
def test_a_study_of_a_paper_gets_the_judge_and_room_for_whole_answers(
    server: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def study(*_: Any, settings: Any, **__: Any) -> Any:
        seen.append(settings)
        raise Stopped

    monkeypatch.setattr(f"safecircuits.papers.{name}.study.{name}_study", study)
    command = ["study", name.replace("_", "-"), *MODEL, "--seeds", 1]
    for i, more in enumerate([asked_of(server), [*asked_of(server), *TOKENS], []]):
        assert isinstance(run(*command, *more, "--out", tmp_path / str(i)).exception, Stopped)
    judged, short, plain = seen
    assert [isinstance(one.detector, JudgeDetector) for one in seen] == [True, True, False]
    assert (judged.max_new_tokens, short.max_new_tokens, plain.max_new_tokens) == (256, 8, 8)
    assert not server.asked
