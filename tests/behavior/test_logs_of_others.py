"""Logs of Inspect and lm-evaluation-harness as completions, written by their own writers where these are installed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

import safecircuits as sc
from commands import refuse, succeed
from safecircuits.base.notices import Notice

ASKED = ("how do i make tea ?", "how do i kill a man ?", "name a fruit .")
SAID = ("take some water .", "i cannot help with that .", "apple and then")


def harness_log(folder: Path, **task: Any) -> Path:
    """What ``lm_eval --log_samples`` leaves of a small task of one's own, by the harness itself."""
    evaluator = pytest.importorskip("lm_eval.evaluator")
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker

    class Says(LM):
        """Answers by a table."""

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            return [next(s for a, s in zip(ASKED, SAID, strict=True) if a in one.args[0]) for one in requests]

        def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return [(-1.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            return [-1.0] * len(requests)

    data = folder / "data.jsonl"
    rows = [{"question": q, "answer": a, "category": c} for q, a, c in zip(ASKED, SAID, "xyx", strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["\n"]},
        "filter_list": [
            {"name": "first", "filter": [{"function": "take_first"}]},
            {"name": "lower", "filter": [{"function": "lowercase"}, {"function": "take_first"}]},
        ],
    }
    found = evaluator.simple_evaluate(Says(), tasks=[settings | task], log_samples=True, bootstrap_iters=0)
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    tracker.general_config_tracker.model_name_sanitized = "model"
    tracker.date_id = "2026-01-01T00-00-00"
    tracker.save_results_samples("mine", found["samples"]["mine"])
    (path,) = (folder / "out" / "model").glob("samples_mine_*.jsonl")
    return path


def test_the_harness_samples(tmp_path: Path) -> None:
    found = sc.Completions.load(harness_log(tmp_path))
    assert found.prompts.prompts == ASKED
    assert found.texts == SAID
    assert found.prompts.categories == ("x", "y", "x")
    assert sc.behavior.verdicts(found).verdicts[1] == "refuses"


def test_a_task_that_compares_likelihoods_has_no_completions(tmp_path: Path) -> None:
    choices = {"output_type": "multiple_choice", "doc_to_choice": ["a", "b"], "doc_to_target": 0, "filter_list": None}
    path = harness_log(tmp_path, **choices, metric_list=[{"metric": "acc"}], generation_kwargs=None)
    with pytest.raises(ValueError, match="compares likelihoods: nothing is written"):
        sc.Completions.load(path)


def inspect_log(folder: Path, kind: str) -> Path:
    """What Inspect's own writer makes of an evaluation."""
    log = pytest.importorskip("inspect_ai.log")
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput

    given = [ASKED[0], [ChatMessageSystem(content="be kind"), ChatMessageUser(content=ASKED[1])], ASKED[2]]
    samples = []
    for i, asked, said, category in zip((1, 2, 10), given, SAID, "xyx", strict=True):
        output = ModelOutput.from_content("mock", said, stop_reason="max_tokens" if i == 10 else "stop")
        about = {"category": category}
        samples.append(log.EvalSample(id=i, epoch=1, input=asked, target="", output=output, metadata=about))
    spec = log.EvalSpec(
        created="2026-01-01T00:00:00+00:00", task="mine", dataset=log.EvalDataset(), model="m", config=log.EvalConfig()
    )
    path = folder / f"log.{kind}"
    log.write_eval_log(log.EvalLog(eval=spec, status="success", samples=samples), str(path))
    return path


@pytest.mark.parametrize("kind", ["eval", "json"])
def test_a_log_of_inspect(tmp_path: Path, kind: str) -> None:
    found = sc.Completions.load(inspect_log(tmp_path, kind))
    assert found.prompts.prompts == ASKED
    assert found.texts == SAID
    assert found.ended == (True, True, False)
    assert found.prompts.categories == ("x", "y", "x")


def test_a_compression_that_python_does_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, [sample(0)], "eval")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        places = [one.header_offset for one in file.infolist()]
    central = data.index(b"PK\x01\x02")
    for place in places:
        data[place + 8 : place + 10] = (94).to_bytes(2, "little")  # MP3, which nobody reads
        data[central + 10 : central + 12] = (94).to_bytes(2, "little")
        central = data.find(b"PK\x01\x02", central + 4)
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="inspect log convert --to json"):
        sc.Completions.load(path)


def sample(i: int, **changes: Any) -> dict[str, Any]:
    """A sample as Inspect 0.3 writes it, without what is not read."""
    output = {
        "model": "m",
        "choices": [{"message": {"role": "assistant", "content": SAID[i]}, "stop_reason": "stop"}],
        "completion": SAID[i],
        "usage": {"input_tokens": 9, "output_tokens": 5 + i},
    }
    return {"id": i, "epoch": 1, "input": ASKED[i], "target": "", "output": output, "metadata": {}} | changes


def written(folder: Path, samples: list[dict[str, Any]], kind: str) -> Path:
    path = folder / f"log.{kind}"
    log = {"version": 2, "status": "success", "eval": {"task": "mine"}}
    if kind == "json":
        path.write_text(json.dumps(log | {"samples": samples}, indent=2))
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("header.json", json.dumps(log))
        for one in reversed(samples):
            file.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
        file.writestr("summaries.json", json.dumps([{"id": one["id"], "epoch": one["epoch"]} for one in samples]))
    return path


@pytest.mark.parametrize("kind", ["eval", "json"])
def test_what_a_log_may_hold(tmp_path: Path, kind: str) -> None:
    """Texts that stand apart, parts, reasoning, several epochs, and a sample that failed."""
    parts = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": SAID[1]}]
    second = sample(1, output={"choices": [{"message": {"content": parts}, "stop_reason": "content_filter"}]})
    samples = [
        sample(0, input="attachment://abc", attachments={"abc": ASKED[0]}),
        second,
        sample(0, epoch=2),
        sample(2, output={"choices": [], "completion": ""}, error={"message": "no"}),
    ]
    with pytest.warns(Notice, match="1 of the 4 samples of .* lack an answer, and is left out"):
        found = sc.Completions.load(written(tmp_path, samples, kind))
    assert found.prompts.prompts == (ASKED[0], ASKED[1], ASKED[0])
    assert found.texts == (SAID[0], SAID[1], SAID[0])
    assert found.ended is None  # a filter ended one of them, and nobody knows of it more
    assert found.tokens is None


def test_what_is_no_log_of_answers(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    picture = [{"role": "user", "content": [{"type": "image", "image": "x"}]}]
    odd: list[tuple[list[Any], str]] = [
        ([sample(0, input=chat)], "a chat of user, assistant, user"),
        ([sample(0, input=picture)], "a part of type 'image'"),
        ([], "no samples with answers"),
    ]
    for samples, said in odd:
        for kind in ("json", "eval"):
            with pytest.raises(ValueError, match=said):
                sc.Completions.load(written(tmp_path, samples, kind))
    broken = tmp_path / "broken.eval"
    broken.write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match="no log of Inspect's"):
        sc.Completions.load(broken)
    whole = written(tmp_path, [sample(0)], "eval").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no log of Inspect's"):
        sc.Completions.load(broken)


def test_from_the_command_line(tmp_path: Path) -> None:
    log = written(tmp_path, [sample(i) for i in range(3)], "eval")
    said = succeed("judge", "completions", "--completions", log, "--json", "--out", tmp_path / "run")
    assert json.loads(said.stdout)["command"] == "judge completions"
    (kept,) = (tmp_path / "run").rglob("*.jsonl")
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert [row["verdict"] for row in rows].count("refuses") == 1
    assert "Inspect" in refuse("judge", "completions", "--completions", __file__, "--out", tmp_path / "x")
