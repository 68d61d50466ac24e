"""Commands that look at answers count them by category, too, where the prompts have categories."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import safecircuits as sc
from commands import refuse, succeed

MODEL = ["--model", "organism:aligned"]
KINDS = ["theft", "fraud", "theft", ""]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Four prompts, of which the last has no category."""
    path = tmp_path / "asked.jsonl"
    rows = zip(sc.load_prompts("organism:malicious", n=4).prompts, KINDS, strict=True)
    path.write_text("".join(json.dumps({"prompt": p, "category": k}) + "\n" for p, k in rows), encoding="utf-8")
    return path


def counted(table: Path) -> dict[str, tuple[int, int]]:
    frame = pd.read_csv(table, keep_default_na=False)
    return {row["category"]: (row["hits"], row["n"]) for row in frame.to_dict("records")}


def test_answers_that_are_written(asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    got = succeed("generate", *MODEL, "--prompt", "how do i bake bread ?", "--data", asked, "--out", out)
    assert "1 of the 4 rows" in got.stderr
    assert "'none'" in got.stderr
    assert counted(out / "tables" / "verdicts_by_category.csv") == {"none": (1, 2), "theft": (2, 2), "fraud": (1, 1)}


def test_a_column_of_another_name(asked: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(asked.read_text(encoding="utf-8").replace('"category"', '"topic"'), encoding="utf-8")
    command = ["generate", *MODEL, "--max-new-tokens", 2, "--data", renamed]
    succeed(*command, "--categories", "data=topic", "--out", tmp_path / "named")
    assert (tmp_path / "named" / "tables" / "verdicts_by_category.csv").is_file()
    succeed(*command, "--out", tmp_path / "plain")
    assert not (tmp_path / "plain" / "tables" / "verdicts_by_category.csv").exists()
    assert "no column 'kind' for the categories" in refuse(
        *command, "--categories", "kind", "--out", tmp_path / "absent"
    )


def test_answers_that_hidden_states_are_held_against(asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    suffixes = ["--benign-suffix", "i cannot", "--malicious-suffix", "take the", "--steps", "1"]
    succeed("probe", *MODEL, "--malicious", asked, *suffixes, "--out", out)
    assert counted(out / "tables" / "refused_by_category.csv") == {"theft": (2, 2), "fraud": (1, 1), "none": (1, 1)}
    verdicts = pd.read_csv(out / "tables" / "verdicts.csv", keep_default_na=False)
    assert verdicts["category"].tolist() == ["theft", "fraud", "theft", "none"]
