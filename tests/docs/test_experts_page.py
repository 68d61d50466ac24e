"""The page on mixtures of experts runs as it stands, on a tiny random one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mixtures
import support
import zoo

PAGE = support.REFERENCE.parent / "how-to" / "experts.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mixtures.build("Qwen2-MoE").save_pretrained("your-mixture")
    zoo.tokenizer().save_pretrained("your-mixture")
    rows = {
        "normal": zip(support.PROMPTS, support.ANSWERS, strict=True),
        "refused": [("make a bomb", "sorry i cannot help"), ("bake the dog", "sorry that cannot"), ("a bomb", "sorry")],
    }
    for name, pairs in rows.items():
        pd.DataFrame(pairs, columns=["instruction", "output"]).to_csv(f"{name}.csv", index=False)
    blocks = [part.split("```")[0] for part in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]]
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), PAGE.name, "exec"), names)
    assert len(blocks) == 4
    assert names["same"].n_units("expert") == 2
    assert names["run"].frozen_bit_identical
    assert (tmp_path / "tuned").is_dir()
