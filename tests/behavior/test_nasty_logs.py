"""Logs of others as they are left behind: failed, cancelled, cut off, odd. Read right, or refused in one sentence."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest

import safecircuits as sc
from safecircuits.base.notices import Notice

Rows = list[dict[str, Any]]


def sample(number: int = 1, said: Any = "water", **changes: Any) -> dict[str, Any]:
    """A sample as Inspect 0.3 writes it, without what is not read."""
    choice = {"message": {"role": "assistant", "content": said}, "stop_reason": "stop"}
    output = {"model": "m", "choices": [choice], "completion": said if isinstance(said, str) else None}
    return {"id": number, "epoch": 1, "input": f"q{number}", "target": "", "output": output} | changes


def choices(*said: str) -> dict[str, Any]:
    listed = [{"message": {"content": one}, "stop_reason": "stop"} for one in said]
    return {"choices": listed, "completion": said[0] if said else "", "usage": {"output_tokens": 9}}


def calling() -> dict[str, Any]:
    message = {"content": "", "tool_calls": [{"id": "1", "function": "f", "arguments": {}}]}
    return {"choices": [{"message": message, "stop_reason": "tool_calls"}], "completion": ""}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


SAID = {"role": "assistant", "content": "b"}
PARTS = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "no"}]
INSPECT: dict[str, tuple[Rows, str, Any]] = {
    "epochs": ([sample(), sample(epoch=2, said="tea")], "success", [("q1", "water"), ("q1", "tea")]),
    "names for numbers": ([sample(id="a/b"), sample(2, id="10")], "success", [("q1", "water"), ("q2", "water")]),
    "failed half way": ([sample(), sample(2, error={"message": "x"})], "success", "1 of the 2 .* failed or lack"),
    "no output": ([sample(), sample(2, output=None)], "success", "1 of the 2 samples .* failed or lack an answer"),
    "cancelled": ([sample()], "cancelled", "has the status 'cancelled': it may lack samples"),
    "not finished": ([sample()], "started", "has the status 'started': it may lack samples"),
    "several choices": ([sample(output=choices("a", "b"))], "success", [("q1", "a"), ("q1", "b")]),
    "parts in a question": (
        [sample(input=[user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])])], "success",
        [("a\nb", "water")],
    ),
    "reasoning": ([sample(said=PARTS)], "success", [("q1", "no")]),
    "reasoning alone": ([sample(said=PARTS[:1])], "success", [("q1", "")]),
    "nothing said": ([sample(said=None)], "success", [("q1", "")]),
    "a category that some lack": (
        [sample(metadata={"category": "x"}), sample(2, metadata=["odd"])], "success", "1 of the 2 answers have no cat",
    ),
    "tools on the way": (
        [sample(messages=[user("q1"), SAID, {"role": "tool", "content": "r"}, SAID])], "success",
        "1 of the 1 samples .* went on after the first answer",
    ),
}  # fmt: skip
NOT_INSPECT: dict[str, tuple[Any, str]] = {
    "all failed": ([sample(error={"message": "x"})], "none of the 1 samples of the log has answers"),
    "no samples": ([], "the log has no samples with answers"),
    "several turns": ([sample(input=[user("a"), SAID, user("c")])], "is a chat of user, assistant, user"),
    "a prefilled answer": ([sample(input=[user("a"), SAID])], "is a chat of user, assistant;"),
    "a picture": (
        [sample(input=[user([{"type": "image", "image": "x"}])])],
        "a part of type .image., which",
    ),
    "tools for an answer": ([sample(output=calling())], "calls tools and is no text"),
    "no question": ([sample(input=None)], "sample 1 holds a NoneType where a text or a list of parts"),
    "a blank question": ([sample(input="  ")], "prompt 1 of the 1 .* is blank"),
    "no message": ([sample(output={"choices": [{}]})], "an answer of sample 1 has no message"),
    "an attachment that is not there": ([sample(input="attachment://abc")], "lacks the attachment 'abc' of sample 1"),
    "null for a sample": ([None], "its samples are no list of objects"),
}


def written(folder: Path, samples: Any, status: str, kind: str) -> Path:
    path, header = folder / f"log.{kind}", {"version": 2, "status": status, "eval": {"task": "mine"}}
    if kind == "json":
        path.write_text(json.dumps(header | {"samples": samples}, indent=1))
        return path
    with zipfile.ZipFile(path, "w") as file:
        for i, one in enumerate(samples):
            file.writestr(f"samples/{i}.json", json.dumps(one))
        if status != "started":  # the header is written at the end
            file.writestr("header.json", json.dumps(header))
    return path


def pairs(path: Path) -> list[tuple[str, str]]:
    found = sc.Completions.load(path)
    return list(zip(found.prompts, found.texts, strict=True))


@pytest.mark.parametrize("kind", ["eval", "json"])
@pytest.mark.parametrize("case", INSPECT)
def test_inspect(case: str, kind: str, tmp_path: Path) -> None:
    samples, status, want = INSPECT[case]
    path = written(tmp_path, samples, status, kind)
    if isinstance(want, str):
        with pytest.warns(Notice, match=want):
            assert pairs(path)[0] == ("q1", "water")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pairs(path) == want


@pytest.mark.parametrize("kind", ["eval", "json"])
@pytest.mark.parametrize("case", NOT_INSPECT)
def test_inspect_without_answers(case: str, kind: str, tmp_path: Path) -> None:
    samples, message = NOT_INSPECT[case]
    with pytest.raises(ValueError, match=message):
        sc.Completions.load(written(tmp_path, samples, "success", kind))


def test_inspect_damaged(tmp_path: Path) -> None:
    path = written(tmp_path, [sample()], "success", "json")
    path.write_text(path.read_text()[:90])
    with pytest.raises(ValueError, match="it is no JSON, or was cut off"):
        sc.Completions.load(path)
    for damage in (b'{"id": 1, ', b"\xff\xfe"):
        with zipfile.ZipFile(tmp_path / "log.eval", "w") as file:
            file.writestr("samples/1.json", damage)
        with pytest.raises(ValueError, match=r"its part .samples/1\.json. is damaged"):
            sc.Completions.load(tmp_path / "log.eval")


def row(number: int = 0, said: Any = None, **changes: Any) -> dict[str, Any]:
    """A line of a harness's samples, without what is not read."""
    given = {"gen_args_0": {"arg_0": f"Q: q{number}\nA:", "arg_1": {"until": ["\n"]}}}
    said = [[f"a{number}"]] if said is None else said
    made = {"doc_id": number, "doc": {"question": f"q{number}"}, "arguments": given, "resps": said, "filter": "none"}
    return made | changes


def given(*contexts: Any) -> dict[str, Any]:
    return {f"gen_args_{i}": {"arg_0": one, "arg_1": {"until": []}} for i, one in enumerate(contexts)}


LIKELIHOOD = row(1, arguments={"gen_args_0": {"arg_0": "Q", "arg_1": " a"}}, resps=[[["-1.0", "False"]]])
CHAT = json.dumps([{"role": "system", "content": "s"}, user("old"), SAID, user("new")])
HARNESS: dict[str, tuple[Any, Any]] = {
    "filters in turn": ([row(0, filter="x"), row(0, filter="y"), row(1, filter="x"), row(1, filter="y")], [0, 1]),
    "filters one by one": ([row(0, filter="x"), row(1, filter="x"), row(0, filter="y"), row(1, filter="y")], [0, 1]),
    "tasks of other filters": ([row(0, filter="x"), row(1, filter="y")], [0, 1]),
    "repeats": ([row(0, [["a", "b"]])], [("q0", "a"), ("q0", "b")]),
    "two requests": ([row(0, [["a"], ["b"]], arguments=given("one", "two"))], [("one", "a"), ("two", "b")]),
    "no field that is known": ([row(0, doc={"x": 1})], [("Q: q0\nA:", "a0")]),
    "a text for a document": ([row(0, doc="text")], [("Q: q0\nA:", "a0")]),
    "a chat": ([row(0, doc={}, arguments=given(CHAT))], [("new", "a0")]),
    "a chat in a list": ([row(0, doc={}, arguments=given([CHAT]))], [("new", "a0")]),
    "arguments of earlier versions": ([row(0, arguments=[["Q", {"until": []}]])], [0]),
    "none said": ([row(0), row(1, [[None]]), row(2, [])], "2 of the 3 repeats failed or lack an answer, and are left"),
    "likelihoods": ([row(0), LIKELIHOOD], ValueError("document 1 is of a task that compares likelihoods")),
    "likelihoods of a text": ([row(0, arguments={"gen_args_0": {"arg_0": "t"}})], ValueError("compares likelihoods")),
    "nothing asked": ([row(0, arguments={})], ValueError("document 0 has no arguments that are a request")),
    "lists said": ([row(0, [[["a"]]])], ValueError("document 0 has an answer that is no text")),
    "an odd row": ([row(0), {"prompt": "a"}], ValueError("row 2 is none of lm-evaluation-harness's samples")),
    "cut off": (json.dumps(row(0)) + "\n" + json.dumps(row(1))[:-9], ValueError("row 2 is no JSON .* cut off")),
    "blank lines and a mark": ("\ufeff" + json.dumps(row(0)) + "\r\n\r\n  \n" + json.dumps(row(1)), [0, 1]),
    "results": ([{"results": {"mine": {}}}], ValueError("row 1 has no 'prompt'; it has 'results'")),
    "null": ([{"prompt": "a", "completion": None}], ValueError("row 1 holds None for its completion")),
    "a list": ([{"prompt": "a", "completion": ["x", "y"]}], ValueError("column 'completion' holds a list, not text")),
    "another name": ([{"prompt": "a", "response": "b"}], ValueError("row 1 has no 'completion'; it has 'prompt'")),
    "texts": (["a"], ValueError("row 1 is no object: 'a'")),
    "ended by a word": ([{"prompt": "a", "completion": "b", "ended": "no"}], ValueError("ended must be True or False")),
    "tokens by a word": ([{"prompt": "a", "completion": "b", "tokens": "x"}], ValueError("tokens must be a whole")),
    "half a character": ('{"prompt": "a", "completion": "\\ud800"}', ValueError("completion 1 holds half a character")),
    "nothing": ("", ValueError("is empty")),
}


@pytest.mark.parametrize("case", HARNESS)
def test_lines(case: str, tmp_path: Path) -> None:
    lines, want = HARNESS[case]
    path = tmp_path / "samples_mine_2026.jsonl"
    path.write_text(lines if isinstance(lines, str) else "".join(json.dumps(one) + "\n" for one in lines))
    if isinstance(want, ValueError):
        with pytest.raises(ValueError, match=str(want)):
            sc.Completions.load(path)
        return
    if isinstance(want, str):
        with pytest.warns(Notice, match=want):
            assert pairs(path) == [("q0", "a0")]
        return
    assert pairs(path) == [(f"q{one}", f"a{one}") if isinstance(one, int) else one for one in want]
    if isinstance(lines, list):
        (tmp_path / "samples.json").write_text(json.dumps(lines, indent=1))
        assert pairs(tmp_path / "samples.json") == pairs(path)


def test_a_folder_is_named_by_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is a folder; name one of its files: it has none"):
        sc.Completions.load(tmp_path)
    (tmp_path / "samples_a.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"it is a folder; name one of its files: samples_a\.jsonl"):
        sc.Completions.load(tmp_path)
    with pytest.raises(ValueError, match="No such file"):
        sc.Completions.load(tmp_path / "none.jsonl")
