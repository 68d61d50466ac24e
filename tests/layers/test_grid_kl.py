"""The KL beside a grid's counts: each block's against two plain passes of Hugging Face's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc

PROMPTS = sc.PromptSet("p", ("make the cake", "find a lamp and the dog", "fix the road"))


def test_each_block_has_the_kl_of_two_plain_models(make_tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_llama = make_tiny_llama()
    model = sc.load_model(make_tiny_llama(), tokenizer=tiny_tokenizer)
    options: dict[str, Any] = {"alpha": 1.3, "max_new_tokens": 2, "detector": lambda text: "a" in text}
    grid = sc.scaling_grid(model, PROMPTS, ordinary=PROMPTS, **options)
    asked = [sc.prompts.encode(tiny_tokenizer, PROMPTS)[i].ids for i in range(3)]

    def last(plain: Any) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            rows = [plain(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for ids in asked]
        return torch.stack(rows).numpy()

    intact = last(tiny_llama)
    for first in range(3):
        for end in range(first, 3):
            with torch.no_grad():
                layers = tiny_llama.model.layers[first : end + 1]
                for p in (p for layer in layers for p in layer.parameters() if p.ndim == 2):
                    p.mul_(1.3)
                changed = last(tiny_llama)
                for p in (p for layer in layers for p in layer.parameters() if p.ndim == 2):
                    p.div_(1.3)
            want = (np.exp(intact) * (intact - changed)).sum(1).mean()
            assert float(grid.kl[first, end]) == pytest.approx(want, rel=1e-3, abs=1e-5)
    assert grid.kl[2, 0].isnan()
    assert grid.record()["ordinary_first_token_kl"].shape == (3, 3)
    loaded = type(grid).load(grid.save(tmp_path / "grid"))
    torch.testing.assert_close(loaded.kl, grid.kl, equal_nan=True)
    assert "ordinary_first_token_kl" not in sc.scaling_grid(model, PROMPTS, max_length=1, **options).record()


def test_a_search_has_the_kl_of_each_configuration_and_of_none_where_it_was_not_asked(tmp_path: Path) -> None:
    model = sc.load_model("organism:aligned")
    borderline, ordinary = (sc.load_prompts(f"organism:{name}", n=4) for name in ("over_rejection", "normal"))
    options: dict[str, Any] = {"alpha": 1.3, "reach": 1, "max_new_tokens": 4, "resume": tmp_path / "sweep.jsonl"}
    plain = sc.localize(model, borderline, (3, 4), **options)
    assert "ordinary_first_token_kl" not in plain.to_frame()
    found = sc.localize(model, borderline, (3, 4), ordinary=ordinary, **options)  # from what is on disk
    assert torch.equal(found.baseline.refused, plain.baseline.refused)
    grid = sc.scaling_grid(model, borderline, alpha=1.3, ordinary=ordinary, max_new_tokens=4)
    for row in found.to_frame().itertuples():
        assert row.ordinary_first_token_kl == pytest.approx(float(grid.kl[row.first, row.last]), rel=1e-6)
        assert row.ordinary_first_token_kl > 0
    assert found.baseline.kl == 0
    assert type(found).load(found.save(tmp_path / "found")).equals(found)
