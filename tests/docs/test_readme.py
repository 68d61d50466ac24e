"""The README's Python runs as it stands, with an embedded model in place of one that would have to be downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import safecircuits as sc

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FILES = {
    "normal": ("normal", "test"),
    "malicious": ("malicious", "test"),
    "over_rejection": ("over_rejection", "test"),
    "refusals": ("malicious", "train"),
    "instructions": ("utility", "train"),
    "new_task": ("new_task", "train"),
}


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (kind, split) in FILES.items():
        data = sc.load_prompts(f"organism:{kind}", split=split, n=24)
        pd.DataFrame({"instruction": data.prompts, "output": data.responses}).to_csv(f"{name}.csv", index=False)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace("google/gemma-2b-it", "aligned"), "README.md", "exec"), names)
    assert names["run"].frozen_bit_identical
    assert sc.FreezeMask.load("freeze.safetensors", names["model"]) == names["mask"]
    assert sc.load_model("tuned").cfg.n_layers == 8


def test_every_file_that_the_readme_links_to_is_there() -> None:
    root = Path(__file__).parents[2]
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (root / link).exists(), link
