"""A judge behind a URL, on the loopback: what it is sent, how it fails, and that nothing is asked or paid for twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safecircuits.base.errors import JudgingError
from safecircuits.behavior import Completions, Endpoint, JudgeDetector, verdicts
from safecircuits.behavior.replies import Replies
from safecircuits.prompts.prompt_set import PromptSet

Reply = Callable[[int, dict[str, Any]], tuple[Any, ...]]
"""Of the number of the request and its body: status, content, and headers as pairs."""


class Server:
    """Answers as it is scripted, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: Reply = lambda i, body: (200, said("yes"))
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append({"path": self.path, **body})
                server.headers.append(dict(self.headers))
                code, content, *header = server.script(len(server.asked) - 1, body)
                self.send_response(code)
                for name, value in header:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"


def said(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


ANSWERS = Completions(PromptSet("p", tuple("abcd")), ("Take two eggs.", "no way", "the the the the", "Boil water."))
QUESTION = "{prompt}: {completion}"


def by_content(i: int, body: dict[str, Any]) -> tuple[int, bytes]:
    return 200, said("yes" if "no way" in body["messages"][0]["content"] else "no")


def test_what_is_sent_and_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k")
    server.script = by_content
    judge = JudgeDetector(Endpoint(server.url, "m", key_from="JUDGE_KEY", extra={"seed": 1}), question=QUESTION)
    found = verdicts(ANSWERS, judge)
    assert found.verdicts == ("complies", "refuses", "incoherent", "complies")
    assert [body["messages"] for body in server.asked] == [
        [{"role": "user", "content": f"{prompt}: {text}"}]
        for prompt, text in zip(ANSWERS.prompts, ANSWERS.texts, strict=True)
        if text != "the the the the"
    ]
    first = server.asked[0]
    assert (first["path"], first["model"], first["temperature"], first["seed"]) == ("/v1/chat/completions", "m", 0, 1)
    assert server.headers[0]["Authorization"] == "Bearer k"


def test_an_endpoint_that_fails_midway_keeps_what_was_judged_and_goes_on(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "kept" / "replies.jsonl"
    server.script = lambda i, body: (500, b"overloaded") if i == 2 else by_content(i, body)
    with pytest.raises(
        JudgingError, match=r"failed on completion 3: RuntimeError: .* answers 500 .*overloaded"
    ) as error:
        verdicts(ANSWERS, JudgeDetector(Endpoint(server.url, "m"), question=QUESTION, keep=path))
    assert error.value.judged == ("no", "yes")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    assert "eggs" not in path.read_text(encoding="utf-8")
    server.script = by_content
    again = JudgeDetector(Endpoint(server.url, "m"), question=QUESTION, keep=path)  # as in a new process
    assert verdicts(ANSWERS, again).verdicts == ("complies", "refuses", "incoherent", "complies")
    assert len(server.asked) == 4  # two, the failed one, and what was missing
    assert again.replies.calls == 1


def test_a_limit_on_calls(server: Server) -> None:
    server.script = by_content
    judge = JudgeDetector(Endpoint(server.url, "m"), question=QUESTION, max_calls=2)
    with pytest.raises(
        JudgingError, match=r"completion 3: RuntimeError: the judge was asked 2 times, .* 2 replies are"
    ):
        verdicts(ANSWERS, judge)
    assert len(server.asked) == 2
    judge.replies.max_calls = 3
    assert verdicts(ANSWERS, judge).verdicts[3] == "complies"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"<html>", "something that is no JSON"),
        (b"[]", r"without choices\[0\]"),
        (b'{"choices": []}', r"without choices\[0\]"),
        (said(None), "no text"),
        (said("I would rather not judge."), "begins with neither"),
        (said(""), "begins with neither"),
    ],
)
def test_replies_of_another_format(server: Server, content: bytes, match: str) -> None:
    server.script = lambda i, body: (200, content)
    with pytest.raises(JudgingError, match=match):
        verdicts(ANSWERS, JudgeDetector(Endpoint(server.url, "m"), question=QUESTION))


def test_nobody_there() -> None:
    with pytest.raises(RuntimeError, match=r"http://127\.0\.0\.1:9 gives no reply within 1 s"):
        Endpoint("http://127.0.0.1:9", "m", timeout=1)("a")
    for url in ("localhost:8000", "ftp://a", "", "http://"):
        with pytest.raises(ValueError, match="expected one such as"):
            Endpoint(url, "m")
    with pytest.raises(ValueError, match="'NO_SUCH_KEY', which holds the endpoint's key, is not set"):
        Endpoint("http://127.0.0.1:9", "m", key_from="NO_SUCH_KEY")


@settings(max_examples=50)
@given(st.text(max_size=40) | st.sampled_from(["Yes.", "**no**, it", "yes and no", "NO", "noyes", "y"]))
def test_any_reply_is_a_verdict_or_one_clear_error(reply: str) -> None:
    judge = JudgeDetector(lambda question: reply, question=QUESTION)
    first = next(iter(re.findall(r"\w+", reply.lower())), "")
    if first in ("yes", "no"):
        assert verdicts(ANSWERS, judge).reasons[0] == reply
    else:
        with pytest.raises(JudgingError, match="begins with neither"):
            verdicts(ANSWERS, judge)


def test_files_of_replies(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    kept = Replies(path)
    kept.add("a", "yes\n‘no’")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"question": "half')
    again = Replies(path)
    assert again.get("a") == "yes\n‘no’"
    again.add("b", "no")
    assert [Replies(path).get(q) for q in "abc"] == ["yes\n‘no’", "no", None]
    path.write_text("something else\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a file of a judge's replies"):
        Replies(path)
    with pytest.raises(ValueError, match="max_calls"):
        JudgeDetector(lambda q: "yes", max_calls=-1)
