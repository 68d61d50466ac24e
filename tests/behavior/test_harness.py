"""Tasks of lm-evaluation-harness on a local task: against the harness's own Hugging Face model, request by request."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import safecircuits as sc
from safecircuits.behavior.harness import TaskScores, run_tasks
from safecircuits.behavior.harness_lm import harness_model

pytest.importorskip("lm_eval")

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 3}}
"""
WRITE = """
task: tiny_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{wanted}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
QUESTIONS = ("how do i make the", "find a", "the lamp is on", "with some water and a dog", "tea")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bridge: Any) -> Path:
    """Two task files with their data; every other written answer is what the model says."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    said = sc.generate(tiny_bridge, QUESTIONS, template="none", max_new_tokens=4).texts
    rows = [
        {
            "question": question,
            "choices": [" cake", " lamp road", " bomb"],
            "label": i % 3,
            "wanted": text.split(".")[0] if i % 2 else "nothing like it",
        }
        for i, (question, text) in enumerate(zip(QUESTIONS, said, strict=True))
    ]
    data = tmp_path / "data.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "choice.yaml").write_text(CHOICE.format(data=data))
    (tmp_path / "tasks" / "write.yaml").write_text(WRITE.format(data=data))
    return tmp_path / "tasks"


def request(*args: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, args, 0)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_requests_are_answered_as_by_the_harness_own_model(
    backend: str, make_tiny_model: Any, tiny_tokenizer: Any
) -> None:
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=make_tiny_model("hf"), tokenizer=tiny_tokenizer, batch_size=1, max_length=20)
    ours = harness_model(make_tiny_model(backend))
    ours.max_length = 20
    pairs = [request(q, " cake on it") for q in QUESTIONS] + [request("", "find a lamp")]
    pairs.append(request(" ".join(["the dog"] * 15), " is here"))  # longer than the context
    greedy = sc.generate(make_tiny_model(backend), ["the lamp is on"], template="none", max_new_tokens=2).texts[0]
    pairs.append(request("the lamp is on", f" {greedy}"))
    want, got = theirs.loglikelihood(pairs), ours.loglikelihood(pairs)
    assert [total for total, _ in got] == pytest.approx([total for total, _ in want], abs=1e-3)
    assert [same for _, same in got] == [same for _, same in want]
    assert got[-1][1]
    texts = [request("find a lamp on the road"), request(" ".join(["take salt and tea"] * 12))]
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-4)
    options = {"until": ["."], "max_gen_toks": 5, "do_sample": False}
    asked = [request(q, options) for q in QUESTIONS]
    assert [t.strip() for t in ours.generate_until(asked)] == [t.strip() for t in theirs.generate_until(asked)]


def test_a_local_task_runs_and_hooks_count(folder: Path, make_tiny_model: Any, tiny_tokenizer: Any) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = make_tiny_model("bridge")
    got = run_tasks(model, ["tiny_choice", "tiny_write"], include=folder)
    theirs = simple_evaluate(
        model=HFLM(pretrained=make_tiny_model("hf"), tokenizer=tiny_tokenizer),
        tasks=["tiny_choice", "tiny_write"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert got.value("tiny_choice") == theirs["tiny_choice"]["acc,none"]
    assert got.value("tiny_choice", "acc_norm") == theirs["tiny_choice"]["acc_norm,none"]
    assert got.value("tiny_write", "exact_match") == theirs["tiny_write"]["exact_match,none"] == 0.4
    row = got.scores[0]
    assert (row.task, row.n, row.version) == ("tiny_choice", 5, "3")
    assert run_tasks(model, "tiny_choice", include=folder, limit=2).scores[0].n == 2
    assert TaskScores.load(got.save(folder.parent / "result")).equals(got)
    assert got.to_frame()["metric"].tolist() == ["acc", "acc_norm", "exact_match"]
    with sc.scaled(model, (0, 2), 3.0):
        assert run_tasks(model, "tiny_write", include=folder).value("tiny_write", "exact_match") < 0.4


def test_bad_tasks(tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match="has no task 'mmlo'"):
        run_tasks(tiny_bridge, ["mmlo"])
    with pytest.raises(ValueError, match="no task to run"):
        run_tasks(tiny_bridge, [])
    with pytest.raises(ValueError, match="samples its answers"):
        harness_model(tiny_bridge).generate_until([request("a", {"do_sample": True, "temperature": 0.7})])
    with pytest.raises(ValueError, match="leave no room"):
        harness_model(tiny_bridge).generate_until([request("a", {"max_gen_toks": 64})])


def test_without_the_harness_the_extra_is_named(tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'safecircuits\[eval\]'"):
        harness_model(tiny_bridge)
