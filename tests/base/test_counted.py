"""What stands beside a count of refusals: read from records, written as words and cells, averaged over draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safecircuits.base.counted import HEADING, Beside, at_most, beside, cells, headings, mean_beside, said
from safecircuits.base.record import Record
from safecircuits.behavior.answers import of_plain, plain
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.evaluate import judge
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.report import tables

TEXTS = ("I'm sorry, but no.", "Take two eggs and a", "the the the the the the", "")
ENDED = (True, False, True, True)


def answers(texts: tuple[str, ...] = TEXTS, ended: tuple[bool, ...] | None = ENDED) -> Completions:
    prompts = PromptSet("asked", tuple(f"prompt {i}" for i in range(len(texts))), texts)
    return Completions(prompts, texts, None, ended, (4,) * len(texts))


def test_a_behavior_says_of_how_many_answers_its_rates_are() -> None:
    row = judge({"malicious": answers()}).record()
    assert Beside.of(row, "malicious_refused") == Beside(n=4, incoherent=2 / 4, cut=1 / 4)  # by hand: two, and one
    assert said(row, "malicious_refused").replace("\u00a0", " ") == (
        "25 % (50 % incoherent, 25 % cut at the token limit, n = 4)"
    )
    assert Beside.of(row, "malicious_refused").cell.replace("\u00a0", " ") == "50 % / 25 % / 4"
    assert not Beside.of(row, "utility")
    assert not beside(row, "utility")


def test_what_is_not_known_is_not_said_to_be_nothing() -> None:
    row = judge({"malicious": answers(ended=None)}).figures
    assert "malicious_cut" not in row
    assert "cut or not is not known" in said(row, "malicious_refused")
    assert Beside.of(row, "malicious_refused").cell.split(" / ")[1] == "–"
    assert str(Beside.of({"malicious_refused": 0.5}, "malicious_refused")) == ""


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([(0.1, 0.2, 10), (0.3, 0.0, 10)], "at most 30 % incoherent and 20 % cut at the token limit, n = 10"),
        ([(0.1, None, 10), (0.0, None, 30)], "at most 10 % incoherent, n = 10 to 30"),
        ([(None, None, 10)], "n = 10"),
        ([], ""),
    ],
)
def test_of_many_counts_the_most(shares: list[tuple[float | None, float | None, int]], expected: str) -> None:
    rows: list[Record] = [{"incoherent": a, "cut": b, "n": n} for a, b, n in shares]
    assert at_most(rows, "refused").replace("\u00a0", " ") == expected


def test_means_are_of_what_all_of_them_know() -> None:
    rows: list[Record] = [
        {"malicious_n": 10, "malicious_incoherent": 0.1, "malicious_cut": 0.5},
        {"malicious_n": 10, "malicious_incoherent": 0.3},
    ]
    assert mean_beside(rows, ["malicious_refused", "utility"]) == {"malicious_n": 10, "malicious_incoherent": 0.2}


def test_every_rate_of_refusals_has_its_column_and_no_other_rate_has() -> None:
    rows = [judge({"malicious": answers(), "utility": answers()}).record(), {"malicious_refused": 1.0, "utility": 0.5}]
    heads = headings(rows, ["malicious_refused", "utility"], ["refused", "right"])
    assert heads == ["refused", HEADING, "right"]
    assert [len(cells(row, rows, ["malicious_refused", "utility"], ["a", "b"])) for row in rows] == [3, 3]
    table = tables.behavior(dict(zip("ab", rows, strict=True)))
    assert table.columns == ["model", "malicious refused", HEADING, "utility"]
    assert {len(row) for row in table.rows} == {4}


def test_answers_are_kept_and_come_back_from_json(tmp_path: Any) -> None:
    import json

    found = judge({"malicious": answers(), "utility": answers()})
    assert found.answers["malicious"].verdicts == ("refuses", "complies", "incoherent", "incoherent")
    assert found.answers["utility"].verdicts == ("right", "wrong", "right", "right")  # what is cut may go on
    assert found.answers["utility"].reasons[1] == "expected: Take two eggs and a"
    again = of_plain(json.loads(json.dumps(plain(found.answers), allow_nan=False)))
    assert all(again[of].equals(one) for of, one in found.answers.items())
    assert type(found).load(found.save(tmp_path / "behavior")).equals(found)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: answers((*a.texts[:3], "No.")),
        lambda a: Completions(PromptSet("other", ("x",) * len(a)), a.texts, None, a.ended, a.tokens),
    ],
)
def test_another_answer_has_another_name(change: Callable[[Completions], Completions]) -> None:
    first, other = (judge({"malicious": one}).answers["malicious"] for one in (answers(), change(answers())))
    assert first.digest == judge({"malicious": answers()}).answers["malicious"].digest != other.digest
    assert torch.equal(first.refused, first.are("refuses"))
