"""Wherever prompts are taken, so are tables of them: what comes out is what a PromptSet gives."""

from __future__ import annotations

from typing import Any

import datasets
import pandas as pd
import pytest
import torch

import safecircuits as sc

PROMPTS = ("find a lamp", "make tea", "bake the cake", "fix the road")
RESPONSES = ("here is a lamp", "sure", "with salt", "that is it")
COLUMNS: dict[str, Any] = {"Prompt": list(PROMPTS), "response": list(RESPONSES), "id": [1, 2, 3, 4]}
CHATS = [
    [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    for prompt, answer in zip(PROMPTS, RESPONSES, strict=True)
]
TABLES: dict[str, Any] = {
    "pandas": pd.DataFrame(COLUMNS),
    "pandas, filtered": pd.DataFrame({**COLUMNS, "keep": True}, index=[7, 3, 9, 1]).query("keep"),
    "datasets": datasets.Dataset.from_dict(COLUMNS),
    "chats": datasets.Dataset.from_dict({"messages": CHATS}),
    "columns": COLUMNS,
    "rows": pd.DataFrame(COLUMNS).to_dict("records"),
    "rows, one by one": iter(pd.DataFrame(COLUMNS).to_dict("records")),
}
DATA = sc.PromptSet("d", PROMPTS, RESPONSES)

TAKES: dict[str, Any] = {
    "generate": lambda model, given: sc.generate(model, given, max_new_tokens=3).texts,
    "residuals": lambda model, given: sc.collect_residuals(model, given).values,
    "gap": lambda model, given: sc.layer_gap(model, given, PROMPTS[:2]).gap_deg,
    "gap, the other side": lambda model, given: sc.layer_gap(model, PROMPTS[:2], given).gap_deg,
    "evaluate": lambda model, given: sc.evaluate(model, malicious=given, max_new_tokens=3).rates,
    "utility": lambda model, given: sc.evaluate(model, utility=given, max_new_tokens=3).rates,
    "scores": lambda model, given: sc.score_units(model, given).scores["mlp"],
    "loss": lambda model, given: sc.response_loss(model, given).nats,
    "data": lambda _, given: sc.training.normal_data(given, 3, seed=1).prompts,
    "finetune": lambda model, given: sc.finetune(model, given, steps=1, batch_size=2, progress=False).losses,
}


@pytest.mark.parametrize("takes", TAKES)
def test_a_table_is_taken_as_its_prompts(takes: str, make_tiny_model: Any) -> None:
    want = TAKES[takes](make_tiny_model("bridge"), DATA)
    for name in ("pandas", "datasets"):
        got = TAKES[takes](make_tiny_model("bridge"), TABLES[name])
        if isinstance(want, torch.Tensor):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
        else:
            assert got == want


@pytest.mark.parametrize("table", TABLES)
def test_any_kind_of_table(table: str, tiny_bridge: Any) -> None:
    assert sc.generate(tiny_bridge, TABLES[table], max_new_tokens=2).prompts.responses == RESPONSES


def test_what_is_no_table_of_prompts(tiny_bridge: Any) -> None:
    splits = datasets.DatasetDict({"train": TABLES["datasets"], "test": TABLES["datasets"]})
    for given, said in {
        "splits": (splits, "holds the splits 'train', 'test': give split=, or one"),
        "no prompts": (
            pd.DataFrame({"a": ["x"], "b": ["y"]}),
            "cannot tell which column",
        ),
        "a number": (3, "cannot read prompts from a int"),
        "no text": (pd.DataFrame({"prompt": [["x", "y"]]}), "holds a list, not text"),
    }.values():
        with pytest.raises(ValueError, match=said):
            sc.generate(tiny_bridge, given)
    assert sc.generate(tiny_bridge, splits["test"], max_new_tokens=1).prompts.prompts == PROMPTS
    assert sc.load_prompts(splits, split="test").prompts == PROMPTS
    with pytest.raises(ValueError, match="'data' has no responses"):
        sc.finetune(tiny_bridge, pd.DataFrame({"prompt": PROMPTS}), steps=1)
