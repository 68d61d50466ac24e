"""Commands on data of one's own: few rows, long answers."""

from __future__ import annotations

from pathlib import Path

import pytest

import safecircuits as sc
from commands import refuse, succeed
from safecircuits.base.notices import Notice
from safecircuits.cli.study_inputs import split_data
from safecircuits.prompts.prompt_set import PromptSet

ALIGNED = ["--model", "organism:aligned"]


@pytest.mark.parametrize(("n", "held"), [(45, 5), (300, 33), (4499, 499), (4500, 500), (9000, 500)])
def test_data_of_any_size_leave_most_rows_to_train_on(n: int, held: int) -> None:
    data = PromptSet("own", tuple(map(str, range(n))), ("a",) * n)
    rows, held_out = split_data(data, 3, "more")
    assert (len(rows), len(held_out)) == (n - held, held)
    assert not set(rows.prompts) & set(held_out.prompts)
    with pytest.raises(ValueError, match="'own' has 44 rows; give at least 45, and more"):
        split_data(data.take(44), 3, "more")


def test_a_study_says_how_many_rows_it_needs(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,response\na,b\nc,d\n")
    for study in ("ssah", "safety-layers"):
        line = refuse("study", study, *ALIGNED, "--data", tmp_path / "p.csv", "--out", tmp_path / "out")
        assert "--data 'p' has 2 rows; give at least 45" in line
    assert not (tmp_path / "out").exists()


def test_embedded_prompts_have_no_columns_to_choose_by(tmp_path: Path) -> None:
    command = ["study", "ssah", *ALIGNED, "--out", tmp_path / "out"]
    for option, value in (("--where", "malicious:label=x"), ("--column", "malicious=goal")):
        line = refuse(*command, option, value)
        assert f"{option} names 'malicious', which are the embedded model's own prompts and have no columns" in line
    assert not (tmp_path / "out").exists()


def test_answers_that_no_completion_can_equal_are_told(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,response\nwhere is the lamp ?,on the table .\nfind it,a b c d e f g\n")
    options = ["--utility", tmp_path / "p.csv", "--out", tmp_path / "out"]
    got = succeed("evaluate", *ALIGNED, *options, "--max-new-tokens", "4")
    [line] = [line for line in got.stderr.splitlines() if line.startswith("warning: ")]
    assert "1 of the 2 known answers of 'p' are longer than a completion may be" in line
    assert "max_new_tokens=4, and the longest answer has 7" in line
    with pytest.warns(Notice, match="1 of the 2 known answers"):
        sc.evaluate(sc.load_model("aligned"), utility=sc.load_prompts(tmp_path / "p.csv"), max_new_tokens=4)
