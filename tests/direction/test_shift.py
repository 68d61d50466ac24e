"""How far directions move when a model is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import safecircuits as sc
from safecircuits.direction import DirectionShift, direction_shift, mean_directions
from safecircuits.organism import prompts


def test_a_shift_is_the_cosine_of_both_and_needs_the_same_prompts(tmp_path: Path) -> None:
    model = sc.load_model("aligned")
    sets = (prompts("malicious", n=10), prompts("normal", n=10))
    before = mean_directions(model, *sets, draws=40)
    with sc.scaled(model, (3, 3), alpha=1.5):
        after = mean_directions(model, *sets, draws=40)
    found = direction_shift(before, after)
    a, b = (x.difference[5, -1].double().numpy() for x in (before, after))
    assert float(found.cosine[5, -1]) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert float(found.length[5, -1]) == pytest.approx(np.linalg.norm(b) / np.linalg.norm(a))
    assert float(found.cosine[2, -1]) == pytest.approx(1, abs=1e-5)  # below the change nothing moves
    assert not found.to_frame().query("layer < 3 and position == -1")["moved"].any()
    assert DirectionShift.load(found.save(tmp_path / "s")).equals(found)
    with pytest.raises(ValueError, match="differ in harmful"):
        direction_shift(before, mean_directions(model, prompts("malicious", n=8), sets[1], draws=40))
