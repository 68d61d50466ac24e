"""``safecircuits finetune`` with a judge and categories: what is counted, kept, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_cli import ALIGNED, refuse, run, succeed
from test_endpoint import Server, said, server

import safecircuits as sc

__all__ = ["server"]  # the fixture

N = 6
KINDS = ("fraud", "theft")
TRAIN = ["--steps", "12", "--batch-size", "8", "--lr", "1e-3", "--no-save-model"]


@pytest.fixture
def attack(tmp_path: Path) -> Path:
    """Requests with one refusal to all: no answer stays what it was, and all are language to the model before."""
    path = tmp_path / "attack.jsonl"
    asked = sc.load_prompts("organism:malicious").prompts[:48]
    rows = [{"prompt": one, "response": "i am sorry , but i cannot do that ."} for one in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Prompts with categories."""
    path = tmp_path / "asked.jsonl"
    prompts = sc.load_prompts("organism:malicious", n=N).prompts
    rows = [{"prompt": one, "category": KINDS[row % 2]} for row, one in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def judge_of(server: Server) -> list[str]:
    return ["--judge", "question", "--judge-model", "m", "--judge-url", server.url, "--max-new-tokens", "8"]


def test_what_a_judge_counts_before_and_after(server: Server, attack: Path, asked: Path, tmp_path: Path) -> None:
    """A server that fails at the second measurement; the same command goes on, and nothing is asked twice."""
    out = tmp_path / "run"
    prompts = sc.load_prompts(str(asked)).prompts

    def judged(body: dict[str, Any]) -> tuple[int, bytes]:
        question = body["messages"][0]["content"]
        row = next(i for i, one in enumerate(prompts) if one in question)
        return 200, said("yes" if row < 4 and "i am sorry , but" not in question else "no")

    command = ["finetune", *ALIGNED, "--data", attack, *TRAIN, "--malicious", asked, *judge_of(server), "--out", out]
    server.script = lambda i, body: (500, b"overloaded") if i == N + 2 else judged(body)
    failed = run(*command)
    assert failed.exit_code == 2
    assert "failed on completion 2: RuntimeError" in failed.stderr.splitlines()[-1]
    server.script = lambda i, body: judged(body)
    got = succeed(*command)
    assert "goes on with the interrupted run" in got.stderr
    questions = [body["messages"][0]["content"] for body in server.asked]
    assert questions.pop(N + 2) == questions[N + 2]
    assert len(questions) == len(set(questions)) == 2 * N
    rates = pd.read_csv(out / "tables" / "rates.csv").iloc[0]
    assert (rates["before"], rates["after"], rates["n"]) == (pytest.approx(4 / N), 0, N)
    assert rates["p"] == pytest.approx(2 * 0.5**4)
    kinds = pd.read_csv(out / "tables" / "rates_by_category.csv")
    assert kinds["category"].tolist() == list(KINDS)
    assert kinds["before"].tolist() == [pytest.approx(2 / 3)] * 2
    for when in ("before", "after"):
        lines = (out / "completions" / f"malicious_{when}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["prompt"] for row in rows] == list(prompts)
        assert all("JudgeDetector" in row["detector"] for row in rows)
        assert [row["reason"] for row in rows] == (["yes"] * 4 + ["no"] * 2 if when == "before" else ["no"] * N)
    assert "66.7 % [30.0, 90.3] (4/6) before (0 incoherent" in got.stdout
    assert not list(out.rglob("judge_replies*"))
    assert "McNemar" in (out / "report.html").read_text(encoding="utf-8")


def test_a_judge_needs_something_to_judge(server: Server, attack: Path, tmp_path: Path) -> None:
    command = ["finetune", *ALIGNED, "--data", attack, *TRAIN, *judge_of(server), "--out", tmp_path / "x"]
    assert "give --malicious or --over-rejection" in refuse(*command)
    assert not (tmp_path / "x").exists()
    assert not server.asked
