"""The file that AlpacaEval reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import safecircuits as sc
from safecircuits.behavior.alpaca_eval import write_alpaca_eval

ANSWERS = sc.Completions(sc.PromptSet("p", ("who?", "wo?")), ("you", "im Süden"))


def test_rows_have_the_three_fields_in_order(tmp_path: Path) -> None:
    rows = json.loads(write_alpaca_eval(ANSWERS, tmp_path / "out.json", "tuned").read_text(encoding="utf-8"))
    assert rows == [
        {"instruction": "who?", "output": "you", "generator": "tuned"},
        {"instruction": "wo?", "output": "im Süden", "generator": "tuned"},
    ]


def test_cut_completions_and_nameless_models_are_refused(tmp_path: Path) -> None:
    cut = sc.Completions(ANSWERS.prompts, ANSWERS.texts, cut="verdict certain")
    for answers, name, message in ((cut, "tuned", "cut"), (ANSWERS, " ", "generator")):
        with pytest.raises(ValueError, match=message):
            write_alpaca_eval(answers, tmp_path / "out.json", name)
    assert not list(tmp_path.iterdir())
