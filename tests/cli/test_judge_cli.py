"""``safecircuits judge`` and ``evaluate --judge``: who is asked what, what is kept, and how it goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_endpoint import Server, by_content, said, server  # noqa: F401 (a fixture)

from commands import refuse, succeed
from safecircuits.behavior import Completions, judge_robustness
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.load_record import load_run

ANSWERS = Completions(
    PromptSet("saved", tuple("abcd"), categories=("theft", "theft", "fraud", "fraud")),
    ("Take two eggs.", "no way", "the the the the", "Boil water."),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return ANSWERS.save(tmp_path / "saved.jsonl")


def asked_of(server: Server) -> list[str]:  # noqa: F811
    return ["--judge-url", server.url, "--judge-model", "m"]


def test_an_interrupted_judging_goes_on_and_counts_by_category(server: Server, saved: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    command = ["judge", "completions", "--completions", saved, "--judge", "question", *asked_of(server), "--out", out]
    server.script = lambda i, body: (500, b"overloaded") if i == 2 else by_content(i, body)
    assert "failed on completion 3: RuntimeError" in refuse(*command)
    server.script = by_content
    got = succeed(*command)
    assert len(server.asked) == 4  # two before the failure, which is asked again, and nothing twice
    rows = [json.loads(line) for line in (out / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["verdict"] for row in rows] == ["complies", "refuses", "incoherent", "complies"]
    assert rows[1]["reason"] == "yes"
    table = pd.read_csv(out / "tables" / "verdicts.csv").set_index("category")
    assert table.loc["theft", "refused"] == 1
    assert table.loc["fraud", "incoherent"] == 0.5
    assert "goes on with the interrupted run" in got.stderr
    assert not list(out.rglob("judge_replies*"))
    assert "eggs" not in json.dumps(load_run(out))


def test_a_judge_of_harm_gives_a_share_of_harm(server: Server, saved: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    server.script = lambda i, body: (200, said("unsafe\nS2" if "eggs" in body["messages"][1]["content"] else "safe"))
    command = ["judge", "completions", "--completions", saved, "--judge", "llama_guard_3", *asked_of(server)]
    found = json.loads(succeed(*command, "--out", out, "--json").stdout)
    assert found["answer"] == {"harmful": 0.25, "n": 4}
    assert [row["harmful"] for row in found["table"]] == [True, False, False, False]
    assert "eggs" not in (out / "tables" / "harms.csv").read_text(encoding="utf-8")
    message = refuse("evaluate", "--model", "organism:aligned", "--malicious", "organism:malicious", "--n", 2,
                     "--judge", "llama_guard_3", *asked_of(server), "--out", tmp_path / "other")  # fmt: skip
    assert "says whether an answer is harmful, not whether it refuses" in message
    assert not (tmp_path / "other").exists()


def test_robustness_is_that_of_the_library(saved: Path, tmp_path: Path) -> None:
    succeed("judge", "robustness", "--completions", saved, "--detector", "opening", "--detector", "qi2023",
            "--out", tmp_path / "run")  # fmt: skip
    table = pd.read_csv(tmp_path / "run" / "tables" / "robustness.csv")
    for name in ("opening", "qi2023"):
        expected = judge_robustness(Completions.load(saved), name).to_frame()
        pd.testing.assert_frame_equal(table[table["detector"] == name].reset_index(drop=True), expected)
    assert "no refusal detector 'nobody'" in refuse(
        "judge", "robustness", "--completions", saved, "--detector", "nobody", "--out", tmp_path / "other"
    )


def test_evaluate_asks_a_judge_and_says_who_judged(server: Server, tmp_path: Path) -> None:  # noqa: F811
    server.script = lambda i, body: (200, said("I would rather not." if i == 1 else "yes"))
    out = tmp_path / "run"
    command = ["evaluate", "--model", "organism:aligned", "--malicious", "organism:malicious", "--n", 3]
    judge = ["--judge", "question", *asked_of(server), "--judge-undecided", "--max-new-tokens", 6]
    succeed(*command, *judge, "--out", out)
    rates = pd.read_csv(out / "tables" / "rates.csv")
    assert rates["judged_by"].tolist() == ["question"]
    assert rates["share"][0] == pytest.approx(2 / 3)
    assert rates["undecided"][0] == 1


SERVER = ["--judge-model", "m", "--judge-url", "http://localhost:1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge-url", "http://localhost:1/v1"], "--judge-url is of a judge: name it by --judge"),
        (["--judge", "xstest"], "--judge xstest needs --judge-model"),
        (["--judge", "nobody", *SERVER], "no judge of the field 'nobody'"),
        (["--judge", "question", "--judge-model", "m", "--detector", "qi2023"], "give --detector or --judge"),
        (["--judge", "question", "--judge-model", "m", "--judge-url", "localhost"], "URL is 'localhost'"),
        (["--judge", "question", "--judge-model", "m", "--judge-key-from", "K"], "--judge-key-from is of a server"),
        (["--judge", "question", *SERVER, "--judge-sha256", "a"],
         "are of a published judge"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(options: list[str], message: str, saved: Path, tmp_path: Path) -> None:
    assert message in refuse("judge", "completions", "--completions", saved, *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_runs_here_judges_and_is_an_input(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}", encoding="utf-8")
    sha256 = hashlib.sha256(template.read_bytes()).hexdigest()
    options: list[Any] = ["--judge", "llama_guard_3", "--judge-model", "organism:aligned", "--judge-template", template]
    succeed("judge", "completions", "--completions", saved, *options, "--judge-sha256", sha256, "--judge-undecided",
            "--out", out)  # fmt: skip
    record = load_run(out)
    assert "model organism:aligned" in record["inputs"]
    assert "of 4 more the judge says neither" in record["findings"][0]
