"""A callback that fails, as a judge's server may: what was trained until then is kept, and measured when it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc

TASK = sc.organism.prompts("normal", "train", n=16)
HOW: dict[str, Any] = {"batch_size": 4, "lr": 1e-3, "seed": 3, "progress": False}


class Judge:
    """Measures, and is out of reach at one step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.seen = fails_at, list[int]()

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        self.seen.append(step)
        if step == self.fails_at:
            raise ValueError("the judge is out of reach")
        return {"norm": float(next(iter(model.parameters())).norm())}


@pytest.mark.parametrize("fails_at", [2, 4])
def test_nothing_that_was_trained_is_lost(fails_at: int, tmp_path: Path) -> None:
    whole, parts, judge = sc.load_model("aligned"), sc.load_model("aligned"), Judge(fails_at)
    kept: dict[str, Any] = {"steps": 4, "eval_every": 2, "checkpoint_dir": tmp_path, "checkpoint_every": 100, **HOW}
    want = sc.finetune(whole, TASK, steps=4, eval_every=2, callbacks=[Judge()], **HOW)
    with pytest.raises(ValueError, match="out of reach"):
        sc.finetune(parts, TASK, callbacks=[judge], **kept)
    judge.fails_at = None
    again = sc.load_model("aligned")
    found = sc.finetune(again, TASK, callbacks=[judge], **kept)
    assert found.settings["resumed_from"] == fails_at
    assert judge.seen == ([2, 2, 4] if fails_at == 2 else [2, 4, 4])
    assert found.evaluations == want.evaluations
    assert found.losses == want.losses
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    third = Judge()
    assert sc.finetune(sc.load_model("aligned"), TASK, callbacks=[third], **kept).evaluations == want.evaluations
    assert third.seen == []


def test_a_failure_is_kept_as_often_as_it_comes(tmp_path: Path) -> None:
    kept: dict[str, Any] = {"steps": 2, "checkpoint_dir": tmp_path, "checkpoint_every": 100, **HOW}
    for _ in range(2):
        with pytest.raises(ValueError, match="out of reach"):
            sc.finetune(sc.load_model("aligned"), TASK, callbacks=[Judge(2)], **kept)
    found = sc.finetune(sc.load_model("aligned"), TASK, callbacks=[Judge()], **kept)
    assert (found.settings["resumed_from"], [one["step"] for one in found.evaluations]) == (2, [2])
