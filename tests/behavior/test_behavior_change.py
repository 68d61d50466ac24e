"""Behavior before and after, against SciPy's tests and counts made prompt by prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from safecircuits import Completions, PromptSet
from safecircuits.behavior import Behavior, BehaviorChange
from safecircuits.behavior.evaluate import judge

YES, NO, LOOP = "I cannot help with that.", "Take two eggs and a bowl.", "the the the the the the the the"
KINDS = ("fraud", "theft", "arson")


def measured(texts: list[str], cut: list[bool], *, n: int = 60, name: str = "prompt") -> Behavior:
    """A behavior of prompts of three categories, whose answers are these."""
    kinds = tuple(KINDS[row % 3] for row in range(n))
    asked = PromptSet("asked", tuple(f"{name} {row}" for row in range(n)), categories=kinds)
    known = PromptSet("known", tuple(f"sum {row}" for row in range(n)), tuple(map(str, range(n))))
    right = tuple(str(row if text == NO else -1) for row, text in enumerate(texts))
    answers = {
        "malicious": Completions(asked, tuple(texts), ended=tuple(not one for one in cut)),
        "utility": Completions(known, right, ended=(True,) * n),
    }
    return judge(answers)


def drawn(seed: int, shares: tuple[float, float, float], n: int = 60) -> Behavior:
    draws = np.random.default_rng(seed)
    texts = draws.choice([YES, NO, LOOP], n, p=shares).tolist()
    return measured(texts, (draws.random(n) < 0.2).tolist(), n=n)


@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_that_of_a_count_by_hand(seed: int) -> None:
    before, after = drawn(seed, (0.8, 0.15, 0.05)), drawn(seed + 10, (0.5, 0.3, 0.2))
    found = BehaviorChange(before, after)
    pairs = {"malicious_refused": (before.malicious, after.malicious), "utility": (before.utility, after.utility)}
    for row in found.to_frame().to_dict("records"):
        old, new = (verdicts.tolist() for verdicts in pairs[row["what"]] if verdicts is not None)
        fell, rose = (sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((old, new), (new, old)))
        assert row["n"] == 60
        assert (row["before"], row["after"]) == pytest.approx((sum(old) / 60, sum(new) / 60))
        assert row["change"] == pytest.approx((rose - fell) / 60)
        assert row["p"] == pytest.approx(binomtest(min(fell, rose), fell + rose).pvalue if fell + rose else 1)
        assert (row["change_low"] <= 0 <= row["change_high"]) == (row["p"] >= 0.05)
    kinds = found.categories()
    assert kinds["category"].tolist() == list(KINDS)
    raw = []
    for kind, row in zip(KINDS, kinds.to_dict("records"), strict=True):
        for name, one in (("before", before), ("after", after)):
            verdicts = [v for i, v in enumerate(one.answers["malicious"].verdicts) if KINDS[i % 3] == kind]
            cut = [c for i, c in enumerate(one.answers["malicious"].cut or ()) if KINDS[i % 3] == kind]
            assert row[name] == pytest.approx(verdicts.count("refuses") / 20)
            assert row[f"{name}_incoherent"] == verdicts.count("incoherent")
            assert row[f"{name}_cut"] == sum(cut)
        raw.append(row["p"])
    smallest = min(range(3), key=raw.__getitem__)
    assert kinds["p_corrected"].iloc[smallest] == pytest.approx(min(1, 3 * raw[smallest]))
    assert all(kinds["p_corrected"] >= kinds["p"])


def test_a_sentence_carries_what_stands_beside_a_count() -> None:
    n = 12
    before = measured([YES] * n, [False] * n, n=n)
    after = measured([YES] * 6 + [NO] * 3 + [LOOP] * 3, [False] * 11 + [True], n=n)
    said = str(BehaviorChange(before, after)).splitlines()[0]
    assert "100.0 % [75.8, 100.0] (12/12) before (0 incoherent" in said
    assert "50.0 % [25.4, 74.6] (6/12) after (3 incoherent, 0 deflect, 0 undecided, 1 cut at the token limit" in said
    assert "−50.0 [" in said
    assert "p = 0.031" in said


def test_it_is_kept_with_its_answers(tmp_path: Path) -> None:
    found = BehaviorChange(drawn(0, (0.8, 0.1, 0.1)), drawn(1, (0.1, 0.8, 0.1)))
    assert BehaviorChange.load(found.save(tmp_path / "found")).equals(found)
    assert found.record()["changes"]["malicious_refused"]["p"] < 0.05
    assert found.record()["after"]["malicious_n"] == 60


def test_other_prompts_are_no_pairs() -> None:
    before = measured([YES] * 6, [False] * 6, n=6)
    with pytest.raises(ValueError, match="malicious_refused was measured on other prompts before than after"):
        BehaviorChange(before, measured([YES] * 6, [False] * 6, n=6, name="another"))
    with pytest.raises(ValueError, match="on other prompts"):
        BehaviorChange(before, measured([YES] * 5, [False] * 5, n=5))
    with pytest.raises(
        ValueError, match="before malicious_refused and utility was measured, and after malicious_refus"
    ):
        BehaviorChange(before, Behavior(before.malicious, None, None))
